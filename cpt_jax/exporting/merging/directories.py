"""Merging of pretrained models: the result is a directory with the files of the first."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cpt_jax.exporting.merging.recipe import Recipe
from cpt_jax.exporting.transformer import write_tensors
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.load import TensorNames
from cpt_jax.model.formats.safetensors_files import TensorFiles
from cpt_jax.model.formats.weight_files import open_weight_files
from cpt_jax.origin.pretrained import Pretrained, list_model_directories
from cpt_jax.runtime.errors import UserError

# Files of the first part that are copied: settings and tokenizer, no weights in any format.
_COPIED_SUFFIXES = '.json', '.txt', '.model', '.jinja'
_NOT_COPIED = '.index.json', 'adapter_config.json', 'golden.json', 'parity.json'
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
    first = models[0]
    for model in models:
        if not (_find_settings(model) / 'config.json').is_file():
            raise UserError(f'--models {model.reference}: has no config.json: export it first')
    for model in models[1:]:
        pairs = {
            'model_type': (model.config['model_type'], first.config['model_type']),
            'vocab_size': (model.rows, first.rows),
            **{f'{key}': (model.shape[key], first.shape.get(key)) for key in model.shape},
            'tokenizer': (model.tokenizer.fingerprint, first.tokenizer.fingerprint),
        }
        for key, (ours, theirs) in pairs.items():
            if ours != theirs:
                raise UserError(
                    f'--models {model.reference}: has another {key} than {first.reference}: '
                    f'{str(ours)[:40]}, not {str(theirs)[:40]}'
                )


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
    settings = _find_settings(models[0])
    _copy_settings(settings, folder)
    parts = [DirectoryPart(model) for model in models]
    write_tensors(_merge_tensors(parts, recipe), folder, _SHARD_BYTES)
    for index, module in enumerate(models[0].dense):
        files = [open_weight_files([*model.dense][index]) for model in models]
        target = folder / module.relative_to(settings)
        write_tensors(_merge_dense(files, recipe), target, _SHARD_BYTES)


def _find_settings(model: Pretrained) -> Path:
    """Returns the directory of a model, or of the base of an adapter."""
    return list_model_directories(str(model.directory))[-1]


def _copy_settings(source: Path, folder: Path) -> None:
    """Copies settings and tokenizer, also those of sentence-transformers' modules."""
    for path in sorted(source.rglob('*')):
        relative = path.relative_to(source)
        is_hidden = any(part.startswith('.') for part in relative.parts)
        if is_hidden or len(relative.parts) > 2 or path.is_dir():
            continue
        if path.name.endswith(_COPIED_SUFFIXES) and not path.name.endswith(_NOT_COPIED):
            (folder / relative).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / relative)


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
