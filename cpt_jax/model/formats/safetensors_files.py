"""The safetensors files of a directory, opened but not read."""

import json
from collections.abc import Set
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from cpt_jax.runtime.errors import UserError

INDEX = 'model.safetensors.index.json'


class Files:
    """All tensors of a directory by name; each is read from the disk when it is asked for.

    Attributes:
      names: of all tensors.
    """

    def __init__(self, directory: Path):
        """Opens model.safetensors, or the shards of its index.

        Raises:
          UserError: there is neither, a shard is missing, or a file is cut short.
        """
        self._directory = directory
        self._where: dict[str, Path] = {
            name: path for path in _paths(directory) for name in opened(path).keys()
        }
        self.names: Set[str] = self._where.keys()

    def read(self, name: str) -> np.ndarray:
        """One tensor, in the dtype of the file."""
        # Left open, all that was read of it would stay in memory.
        with opened(self._where[name]) as file:
            return file.get_tensor(name)

    @property
    def paths(self) -> list[Path]:
        """The files that hold them."""
        return sorted(set(self._where.values()))

    def place(self, name: str) -> str:
        """'file: name', for people."""
        return f'{self._where[name]}: {name}'


def _paths(directory: Path) -> list[Path]:
    index = directory / INDEX
    if index.is_file():
        try:
            paths = sorted(
                {
                    directory / name
                    for name in json.loads(index.read_text('utf-8'))['weight_map'].values()
                }
            )
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(
                f'{index}: not an index of shards ({type(error).__name__}: {error})'
            ) from None
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise UserError(
                f'{directory}: {len(missing)} of {len(paths)} shards that {INDEX} names are '
                f'missing, {missing[0]} first'
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
        f'; {other} cannot be read: convert it, with `save_pretrained` of transformers'
        if other
        else ''
    )
    raise UserError(f'{directory}: holds neither model.safetensors nor {INDEX}{hint}')


def opened(path: Path):
    """A safetensors file. Raises UserError where it is damaged."""
    try:
        return safe_open(path, 'np')
    except (SafetensorError, OSError) as error:
        raise UserError(f'{path}: damaged or cut short ({error}): copy it again') from None
