"""The safetensors files of a directory; tensors are read on demand."""

import json
from collections.abc import Set
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from cpt_jax.runtime.errors import UserError

INDEX = 'model.safetensors.index.json'


class TensorFiles:
    """All tensors of a directory by name; each is read from disk on demand.

    Attributes:
      names: names of all tensors.
    """

    def __init__(self, directory: Path):
        """Opens model.safetensors, or the shards of its index.

        Raises:
          UserError: both are missing, a shard is missing, or a file is damaged.
        """
        self._directory = directory
        self._path_by_name: dict[str, Path] = {
            name: path for path in _find_paths(directory) for name in open_safetensors(path).keys()
        }
        self.names: Set[str] = self._path_by_name.keys()

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor, in the dtype of the file."""
        # The file is opened anew for each tensor: an open file keeps all that was read in memory.
        with open_safetensors(self._path_by_name[name]) as file:
            return file.get_tensor(name)

    def read_shape(self, name: str) -> list[int]:
        """Returns the shape of a tensor, without reading it."""
        with open_safetensors(self._path_by_name[name]) as file:
            return file.get_slice(name).get_shape()

    @property
    def paths(self) -> list[Path]:
        """The files that contain the tensors."""
        return sorted(set(self._path_by_name.values()))

    def describe_location(self, name: str) -> str:
        """Returns 'file: name', for messages."""
        return f'{self._path_by_name[name]}: {name}'


def _find_paths(directory: Path) -> list[Path]:
    index = directory / INDEX
    if index.is_file():
        try:
            paths = sorted(
                {
                    directory / name
                    for name in json.loads(index.read_text('utf-8'))['weight_map'].values()
                }
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f'{index}: is not an index of shards ({type(error).__name__}: {error})'
            ) from None
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise UserError(
                f'{directory}: {len(missing)} of {len(paths)} shards that {INDEX} lists are '
                f'missing, {missing[0]} first: copy them'
            )
        return paths
    if (directory / 'model.safetensors').is_file():
        return [directory / 'model.safetensors']
    other = ', '.join(
        sorted(
            path.name
            for path in directory.glob('*')
            if path.suffix in ('.bin', '.pt', '.pth', '.h5', '.msgpack')
        )
    )
    hint = (
        f'; {other} cannot be read: convert it with `save_pretrained` of transformers'
        if other
        else ''
    )
    raise UserError(f'{directory}: has neither model.safetensors nor {INDEX}{hint}')


def open_safetensors(path: Path):
    """Opens a safetensors file. Raises UserError if it is damaged."""
    try:
        return safe_open(path, 'np')
    except (SafetensorError, OSError) as error:
        raise UserError(f'{path}: damaged or cut short ({error}): copy it again') from None
