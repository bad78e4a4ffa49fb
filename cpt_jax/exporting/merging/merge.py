"""Merging of models of one form into one, by the mean of their weights."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cpt_jax.exporting.directory import export
from cpt_jax.exporting.merging.directories import merge_directories
from cpt_jax.exporting.merging.recipe import Recipe, write_merge_card
from cpt_jax.exporting.merging.runs import merge_runs
from cpt_jax.exporting.output import atomic_directory, check_can_export, check_is_single_process
from cpt_jax.origin.earlier_run import EarlierRun
from cpt_jax.origin.pretrained import Pretrained, is_pretrained, open_pretrained
from cpt_jax.origin.resolve import resolve_model
from cpt_jax.runtime.errors import UserError


def merge(
    references: Sequence[str],
    output: Path,
    weights: Sequence[float] = (),
    method: str = 'linear',
    base: str = '',
) -> str:
    """Writes the merged model. Runs become a run; if any part is a pretrained model or an adapter
    directory, the result is the directory of a pretrained model.

    Args:
      references: a run, RUN@STEP, or the directory of a pretrained model or of an adapter, each.
      output: directory to create, local or in a bucket. It must not exist yet, and exists
        afterwards only if merging succeeds.
      weights: weight of each part, divided by their sum; () are equal weights.
      method: 'linear' or 'slerp'.
      base: where the base of LoRA runs is now. Default '': where it was in training.

    Returns:
      'run' or 'pretrained model', whichever was written.

    Raises:
      UserError: a part cannot be read, or the parts have other shapes or tokenizers.
    """
    recipe = Recipe.make(references, weights, method)
    check_is_single_process('a merged model')
    check_can_export(output)
    models = [resolve_model(reference, '--models', base_path=base) for reference in references]
    runs = [model for model in models if isinstance(model, EarlierRun)]
    with atomic_directory(output) as folder:
        if len(runs) == len(models):
            merge_runs(runs, recipe, folder)
        else:
            with _export_runs(models) as directories:
                merge_directories(directories, recipe, folder)
        write_merge_card(folder, output.name, recipe)
    return 'run' if len(runs) == len(models) else 'pretrained model'


@contextmanager
def _export_runs(models: Sequence[Pretrained | EarlierRun]) -> Iterator[list[Pretrained]]:
    """Yields the models as pretrained models; runs are exported to a temporary directory."""
    with tempfile.TemporaryDirectory(prefix='merge-') as folder:
        yield [
            _export_run(model, Path(folder, str(index))) if isinstance(model, EarlierRun) else model
            for index, model in enumerate(models)
        ]


def _export_run(run: EarlierRun, directory: Path) -> Pretrained:
    """Exports a run and opens the export."""
    export(
        run.reference,
        directory,
        dtype='float32',
        shard_bytes=10**9,
        license_id='unknown',
        base=run.base_path,
    )
    if not is_pretrained(str(directory)):
        raise UserError(
            f'--models {run.reference}: has its own closing delimiter for each side, so it can be '
            f'merged with other runs only, not with a pretrained model'
        )
    return open_pretrained(str(directory))
