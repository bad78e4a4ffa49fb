"""Merging of pretrained models: the result is a directory with the files of the first."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cpt_jax.exporting.merging.recipe import Recipe
from cpt_jax.exporting.weight_shards import write_tensors
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.load import TensorNames
from cpt_jax.model.formats.safetensors_files import TensorFiles
from cpt_jax.model.formats.weight_files import open_weight_files
from cpt_jax.origin.pretrained import Pretrained, choose_form, list_model_directories
from cpt_jax.origin.sentence_transformers import SentenceFiles, read_sentence_files
from cpt_jax.runtime.errors import UserError

# Files of the first part that are copied: settings and tokenizer, no weights in any format.
_COPIED_SUFFIXES = '.json', '.txt', '.model', '.jinja'
_NOT_COPIED = '.index.json', 'adapter_config.json', 'golden.json', 'parity.json'
_TOKENIZER_FILES = (
    'tokenizer*.json',
    'vocab.*',
    'merges.txt',
    '*.model',
    'added_tokens.json',
    'special_tokens_map.json',
    '*.jinja',
)
_SHARD_BYTES = 1_000_000_000


class DirectoryPart:
    """The tensors of a pretrained model, each read on demand, by names without the prefix.

    Attributes:
      model: the model.
      names: names in the files by names without the prefix.
    """

    def __init__(self, model: Pretrained):
        self.model = model
        config = EncoderConfig(vocab_size=model.rows, **model.shape)
        prefix = TensorNames(model.family, model.files, config).prefix
        self.names = {name.removeprefix(prefix): name for name in model.files.names}

    def read(self, name: str) -> np.ndarray:
        """Returns one tensor, with an adapter merged into it."""
        return self.model.files.read(self.names[name])


def check_same_directories(models: list[Pretrained]) -> None:
    """Raises UserError unless all models have the architecture and tokenizer of the first."""
    for model in models:
        _check_can_be_written(model)
    first = _describe_form(models[0])
    for model in models[1:]:
        form = _describe_form(model)
        for key in form:
            if form[key] != first.get(key):
                raise UserError(
                    f'--models {model.reference}: has another {key} than {models[0].reference}: '
                    f'{str(form[key])[:40]}, not {str(first.get(key))[:40]}'
                )


def _check_can_be_written(model: Pretrained) -> None:
    """Raises UserError unless a directory in the form of transformers can have the model's form."""
    levels = _read_levels(model)
    base = levels[-1]
    if not (base.transformer / 'config.json').is_file():
        raise UserError(
            f'--models {model.reference}: {base.directory} has no config.json: merging needs a '
            f'directory in the form of transformers'
        )
    would_have_form = choose_form(levels).has_modules or not model.shape.get('causal', True)
    if would_have_form and not model.has_own_form:
        raise UserError(
            f'--models {model.reference}: is an adapter that trained tokens around texts, which '
            f'its base lacks: merge the run that it was exported from'
        )


def _read_levels(model: Pretrained) -> list[SentenceFiles]:
    """Returns the files of a model and, if it is an adapter, of its base."""
    directories = list_model_directories(str(model.directory))
    return [read_sentence_files(directory.absolute()) for directory in directories]


def _describe_form(model: Pretrained) -> dict[str, Any]:
    """Returns everything that must be equal, by the name that a message has for it.

    Maximum lengths may differ: a model that was trained further often has a shorter one.
    """
    return {
        'model_type': model.config['model_type'],
        'vocab_size': model.rows,
        **model.shape,
        'tokenizer': model.tokenizer.fingerprint,
        'include_prompt of the pooling': model.includes_prompt,
        # Dot products of normalized vectors are cosines.
        'similarity': 'cosine' if model.is_normalized else model.similarity,
    }


def merge_directories(models: list[Pretrained], recipe: Recipe, folder: Path) -> None:
    """Writes the directory of the merged model.

    One tensor of each part is in memory at a time, and one file of the result, at most 1 GB.

    Args:
      models: models of the same form.
      recipe: what is merged.
      folder: empty directory to write to.

    Raises:
      UserError: the models have other architectures, tokenizers or tensors.
    """
    check_same_directories(models)
    form = _copy_settings(models[0], folder)
    parts = [DirectoryPart(model) for model in models]
    transformer = folder / form.transformer.relative_to(form.directory)
    write_tensors(_merge_tensors(parts, recipe), transformer, _SHARD_BYTES)
    for index, module in enumerate(models[0].dense):
        files = [open_weight_files([*model.dense][index]) for model in models]
        target = folder / module.relative_to(form.directory)
        write_tensors(_merge_dense(files, recipe), target, _SHARD_BYTES)


def _copy_settings(model: Pretrained, folder: Path) -> SentenceFiles:
    """Copies settings and tokenizer, also those of sentence-transformers' modules.

    Those of an adapter replace those of its base, by the rules of `open_pretrained`.

    Returns:
      The files of the directory whose modules were copied.
    """
    levels = _read_levels(model)
    form = choose_form(levels)
    for path in sorted(form.directory.rglob('*')):
        is_tokenizer = path.parent == form.transformer and _is_tokenizer_file(path)
        relative = path.relative_to(form.directory)
        is_hidden = any(part.startswith('.') for part in relative.parts)
        if not is_hidden and len(relative.parts) <= 2 and not is_tokenizer:
            _copy_file(path, folder / relative)
    transformer = folder / form.transformer.relative_to(form.directory)
    _copy_file(levels[-1].transformer / 'config.json', transformer / 'config.json')
    assert model.tokenizer_folder is not None
    for path in filter(_is_tokenizer_file, sorted(model.tokenizer_folder.iterdir())):
        _copy_file(path, transformer / path.name)
    return form


def _is_tokenizer_file(path: Path) -> bool:
    return any(path.match(pattern) for pattern in _TOKENIZER_FILES)


def _copy_file(path: Path, target: Path) -> None:
    """Copies a file unless it has weights or describes those of the source."""
    if path.is_file() and path.name.endswith(_COPIED_SUFFIXES):
        if not path.name.endswith(_NOT_COPIED):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def _merge_tensors(parts: list[DirectoryPart], recipe: Recipe) -> Iterator[tuple[str, np.ndarray]]:
    """Yields name and array of each tensor of the first part, in its dtype.

    Tensors that not all parts have, such as an unused head, and integers are those of the first.
    """
    for name, stored in parts[0].names.items():
        first = parts[0].read(name)
        is_shared = all(name in part.names for part in parts)
        if is_shared and not np.issubdtype(first.dtype, np.integer) and first.dtype != bool:
            yield stored, _merge_checked(parts, name, recipe).astype(first.dtype)
        else:
            yield stored, first


def _merge_checked(parts: list[DirectoryPart], name: str, recipe: Recipe) -> np.ndarray:
    shape = parts[0].model.files.read_shape(parts[0].names[name])
    for part in parts[1:]:
        if part.model.files.read_shape(part.names[name]) != shape:
            raise UserError(
                f'--models {part.model.reference}: {name} has another shape than in '
                f'{parts[0].model.reference}'
            )
    return recipe.merge(part.read(name) for part in parts)


def _merge_dense(files: list[TensorFiles], recipe: Recipe) -> Iterator[tuple[str, np.ndarray]]:
    """Yields name and array of each tensor of a Dense module."""
    for name in sorted(files[0].names):
        merged = recipe.merge(part.read(name) for part in files)
        yield name, merged.astype(files[0].read(name).dtype)
