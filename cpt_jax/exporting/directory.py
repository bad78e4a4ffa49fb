"""Export of a run as a directory that other libraries load."""

import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax

from cpt_jax.embed.embedder import Embedder
from cpt_jax.embed.load import load_embedder
from cpt_jax.exporting.card import ExportedPart, ExportedRun, write_card
from cpt_jax.exporting.golden import TEXTS, compute_differences, make_golden, write_golden
from cpt_jax.exporting.sentence_transformers import write_layout, write_tokenizer
from cpt_jax.exporting.tokenizer import (
    PROMPT_NAMES,
    ExportedTokenizer,
    export_pretrained_tokenizer,
    export_template_tokenizer,
    export_tokenizer,
)
from cpt_jax.exporting.transformer import make_config_json, write_weights
from cpt_jax.origin.earlier_run import EarlierRun
from cpt_jax.origin.pretrained import Pretrained
from cpt_jax.origin.resolve import resolve_model
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.cache import get_cache_folder
from cpt_jax.storage.json_files import write_json
from cpt_jax.storage.paths import is_on_bucket
from cpt_jax.storage.store_errors import explain_errors
from cpt_jax.storage.upload import upload_folder
from cpt_jax.storage.writable import check_writable
from cpt_jax.text.pretrained_tokenizer import PretrainedTokenizer
from cpt_jax.text.tokenizer import SIDES, Side

PARITY = 'parity.json'


def export(
    reference: str, output: Path, *, dtype: str, shard_bytes: int, license_id: str, base: str = ''
) -> list[ExportedPart]:
    """Writes a run as one directory, or as `query/` and `document/` if each side has its own
    closing delimiter.

    A run with a template becomes a plain transformers model. sentence-transformers cannot express
    it: its prompts only add text at the beginning, and template and text must be tokenized as one
    string. The card and golden.json contain the template.

    Args:
      reference: a run, or RUN@STEP.
      output: directory to create, local or in a bucket. It must not exist yet, and exists
        afterwards only if the export succeeds.
      dtype: dtype of the weights, a key of DTYPES.
      shard_bytes: int, maximum bytes of weights per file.
      license_id: license identifier for the model card.
      base: where the base of a LoRA run is now. Default '': where it was in training.

    Returns:
      The directories that were written.

    Raises:
      UserError: there is no such run, no other library has an equivalent of its architecture, or
        `output` already exists.
    """
    check_can_export(output)
    run = resolve_model(reference, '--model', base_path=base)
    if isinstance(run, Pretrained):
        raise UserError(
            f'--model {reference}: is a pretrained model, which other libraries already load; give '
            f'a run of launch/train.py'
        )
    with atomic_directory(output) as folder:
        written: list[ExportedPart] = []
        for part in _plan_parts(run):
            weights = folder / written[0].name if written else None
            written.append(_write_part(run, part, folder, weights, dtype, shard_bytes))
        exported_run = ExportedRun(run.run_dir, run.step, run.provenance, dtype, license_id)
        write_card(folder, exported_run, output.name, written)
    return written


class _Part(NamedTuple):
    """A directory to write.

    Attributes:
      name: path within the export; '' for the export itself.
      max_tokens: maximum tokens of a text in the run, for each side that the directory embeds; 0:
        the limit of the model.
      delimiters: side whose opening and closing delimiters the tokenizer adds; None: the opening
        one is a prompt, or there is none.
    """

    name: str
    max_tokens: Mapping[Side, int]
    delimiters: Side | None


def _plan_parts(run: EarlierRun) -> list[_Part]:
    if run.provenance.template:
        return [_Part('', {'x': 0}, None)]
    data = run.provenance.config['data']
    max_tokens: dict[Side, int] = {side: data[f'max_tokens_{side}'] for side in SIDES}
    tokenizer = run.load_tokenizer()
    if isinstance(tokenizer, PretrainedTokenizer) or tokenizer.closing == 'shared':
        return [_Part('', max_tokens, None)]
    return [_Part(PROMPT_NAMES[side], {side: max_tokens[side]}, side) for side in SIDES]


def _write_part(
    run: EarlierRun, part: _Part, folder: Path, weights: Path | None, dtype: str, shard_bytes: int
) -> ExportedPart:
    """Writes one directory of an export.

    Args:
      run: the exported checkpoint.
      part: the directory to write.
      folder: folder of the export.
      weights: directory that already has the weights, optional.
      dtype, shard_bytes: see `export`.
    """
    directory = folder / part.name
    directory.mkdir(exist_ok=True)
    sides = tuple(part.max_tokens)
    longest = max(part.max_tokens.values())
    embed = load_embedder(run.reference, dtype='float32', max_tokens=longest, base=run.base_path)
    if embed.model_name != run.name:  # the card would describe the checkpoint that is damaged
        raise UserError(
            f'--model {run.reference}: step {run.step} is damaged: export {embed.model_name}'
        )
    encoder_config = embed.encoder.config
    family, config = make_config_json(encoder_config, run.provenance.pretrained, dtype)
    longest = embed.settings['max_tokens_y']
    text = _write_tokenizer_files(run, part, directory, embed, longest)
    ids = dict(text.ids)
    if encoder_config.padding_id >= 0:
        # This family counts positions from its own padding id, whatever pads a batch.
        ids['pad_token_id'] = encoder_config.padding_id
    write_json(directory / 'config.json', config | ids)
    if weights:
        for path in weights.glob('model*'):
            _link(path, directory / path.name)
    else:
        rows = encoder_config.vocab_size
        write_weights(family, embed.encoder, rows, directory, dtype, shard_bytes)
    golden = make_golden(embed, sides)
    write_golden(directory, golden)
    parity = compute_differences(directory, golden)
    # Vectors may be NaN: the export is written all the same, so that it can be examined.
    write_json(directory / PARITY, _make_parity_report(embed, parity, dtype), allow_nan=True)
    limits = {PROMPT_NAMES[side]: limit or longest for side, limit in part.max_tokens.items()}
    return ExportedPart(
        name=part.name,
        sides=sides,
        prompts=text.prompts,
        max_tokens=longest,
        difference=max(parity.values()),
        kind=config['model_type'],
        width=embed.width,
        shorter={side: limit for side, limit in limits.items() if limit < longest},
    )


def _write_tokenizer_files(
    run: EarlierRun, part: _Part, directory: Path, embed: Embedder, longest: int
) -> ExportedTokenizer:
    """Writes the tokenizer and, unless texts are in a template, the files of
    sentence-transformers.
    """
    tokenizer = run.load_tokenizer()
    if isinstance(tokenizer, PretrainedTokenizer):
        assert run.provenance.pretrained is not None
        text = export_pretrained_tokenizer(tokenizer, run.provenance.pretrained)
        write_layout(directory, text, embed.encoder.config, longest, embed.dense)
    elif run.provenance.template:
        text = export_template_tokenizer(tokenizer, run.provenance.begin or ())
        write_tokenizer(directory, text, longest, text.special_tokens)
    else:
        text = export_tokenizer(tokenizer, part.delimiters)
        write_layout(directory, text, embed.encoder.config, longest, embed.dense)
    return text


def check_can_export(output: Path) -> None:
    """Raises UserError if an export cannot be written.

    That is if `output` already exists, if its folder cannot be written, or if there are several
    processes.
    """
    if jax.process_count() > 1:
        raise UserError(
            'an export is written by a single process: run it on one host, with JAX_PLATFORMS=cpu '
            'if one host cannot use its chips without the others'
        )
    if is_on_bucket(output):
        check_writable(get_cache_folder(), '--output')
    else:
        check_writable(output.absolute().parent, '--output')
    with explain_errors('--output', str(output)):
        exists = output.exists()
    if exists:
        raise UserError(f'--output {output}: already exists: remove it, or give another')


def _make_parity_report(
    embed: Embedder, parity: Mapping[Side, float], dtype: str
) -> dict[str, Any]:
    """Returns the content of parity.json."""
    return {
        'model': embed.model_name,
        'weights': dtype,
        'computed_in': 'float32',
        'texts_a_side': len(TEXTS),
        'largest_difference_of_a_unit': parity,
        'against': "the run's own vectors, after a reload by cpt_jax's importer",
        'libraries': {
            name: importlib.metadata.version(name)
            for name in ('jax', 'flax', 'tokenizers', 'safetensors')
        },
    }


def _link(path: Path, other: Path) -> None:
    """Hard-links a file under another name, or copies it if the file system has no hard links."""
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)


@contextmanager
def atomic_directory(output: Path) -> Iterator[Path]:
    """Yields a temporary directory; renames it to `output` on success and removes it on failure.

    If `output` is in a bucket, the directory is in the cache and is uploaded on success.
    """
    if is_on_bucket(output):
        cache = get_cache_folder()
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix='export-', dir=cache) as folder:
            yield Path(folder)
            upload_folder(Path(folder), str(output), '--output')
        return
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f'.{output.name}.', dir=output.absolute().parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes it readable by its owner only
        temporary.rename(output.absolute())
    except BaseException:
        shutil.rmtree(temporary)
        raise
