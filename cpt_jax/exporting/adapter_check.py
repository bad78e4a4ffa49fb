"""Checks of the directory of a PEFT adapter from the point of view of its readers."""

from collections.abc import Iterator
from pathlib import Path

from cpt_jax.exporting.check import TRANSFORMERS, Defect, Report, check_vectors
from cpt_jax.exporting.golden import GOLDEN
from cpt_jax.model.adapters.peft import (
    CONFIG,
    AdaptedFiles,
    find_adapter_weights,
    find_base_directory,
    read_adapter_config,
    read_adapter_weights,
    read_trainable_ids,
)
from cpt_jax.origin.pretrained import open_pretrained
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.paths import is_remote

_PEFT, _OURS = 'PEFT', 'cpt_jax'


def check_adapter(directory: Path) -> Report:
    """Checks an adapter and that it belongs to its base.

    The vectors of golden.json are compared, which shows whether the base is the one of the
    training.
    """
    defects = list(_check_config(directory))
    if any(defect.readers == _OURS for defect in defects):
        return Report(directory, [CONFIG], defects)  # the weights cannot be opened
    defects += _check_weights(directory)
    names = (CONFIG, find_adapter_weights(directory).name, GOLDEN)
    checked_files = [name for name in names if name != GOLDEN or (directory / name).exists()]
    return Report(directory, checked_files, defects)


def _check_config(directory: Path) -> Iterator[Defect]:
    try:
        config = read_adapter_config(directory)
        base = config.get('base_model_name_or_path') or ''
        find_base_directory(directory)
    except UserError as error:
        yield Defect(CONFIG, str(error), _OURS)
        return
    if is_remote(base):
        what = f'is {base}, which PEFT cannot read: set it to a copy on a disk'
        yield Defect(f'{CONFIG}: base_model_name_or_path', what, f'{_PEFT}, {TRANSFORMERS}')
    elif not (Path(base) / 'config.json').is_file():
        what = f'is {base}, a path within the adapter: set it to the absolute path'
        yield Defect(f'{CONFIG}: base_model_name_or_path', what, f'{_PEFT}, {TRANSFORMERS}')


def _check_weights(directory: Path) -> Iterator[Defect]:
    weights = find_adapter_weights(directory)
    try:
        read_adapter_weights(weights)
    except UserError as error:
        yield Defect(weights.name, str(error), f'{_PEFT}, {_OURS}')
        return
    try:
        model = open_pretrained(str(directory))
    except UserError as error:  # PEFT loads other bases too, and no tokenizer
        yield Defect(f'{CONFIG}: base_model_name_or_path', str(error), _OURS)
        return
    assert isinstance(model.files, AdaptedFiles)
    try:
        model.files.check_shapes()
    except UserError as error:
        yield Defect(weights.name, str(error), f'{_PEFT}, {_OURS}')
        return
    ids = read_trainable_ids(read_adapter_config(directory))
    if ids and max(ids) >= model.rows:
        what = (
            f'has id {max(ids)}, but the token table of the base has {model.rows} rows: call '
            f'model.resize_token_embeddings({max(ids) + 1}) before PeftModel.from_pretrained'
        )
        yield Defect(f'{CONFIG}: trainable_token_indices', what, _PEFT)
    yield from check_vectors(directory, model.files.read_merged_dtype().name)
