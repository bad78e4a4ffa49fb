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

    SINGLE = 'model.safetensors'
    INDEX = INDEX

    def __init__(self, directory: Path):
        """Opens the single file, or the shards of the index if there is no single file.

        transformers has the same order. An index beside a single file is from an earlier save.

        Raises:
          UserError: both are missing, a shard is missing, or a file is damaged.
        """
        self._path_by_name: dict[str, Path]
        single = directory / self.SINGLE
        if single.is_file():
            self._path_by_name = dict.fromkeys(self._list_names(single), single)
        else:
            self._path_by_name = self._assign_to_shards(directory / self.INDEX)
        self.names: Set[str] = self._path_by_name.keys()

    def _list_names(self, path: Path) -> list[str]:
        """Returns the names of the tensors in one file."""
        return list(open_safetensors(path).keys())

    def _assign_to_shards(self, index: Path) -> dict[str, Path]:
        """Returns the shard of each tensor that the index lists and a shard has.

        transformers ignores which shard the index assigns a tensor to, and takes the last in the
        order of file names. Usually only one shard has the tensor, or the copies are equal.

        Raises:
          UserError: the index assigns a tensor to another shard than transformers, and a later
            shard has different values.
        """
        shard_by_name = _read_index(index)
        found: dict[str, Path] = {}
        assigned: dict[str, Path] = {}  # of the tensors that their shard has
        for path in sorted(set(shard_by_name.values())):
            for name in self._list_names(path):
                if name in assigned and not self._has_copy(name, assigned[name], path):
                    raise UserError(
                        f'{index}: assigns {name} to {assigned[name].name}, but {path.name} has '
                        f'other values under this name, which transformers loads: save the model '
                        f'again'
                    )
                if path == shard_by_name.get(name):
                    assigned[name] = path
                found[name] = path
        return {name: path for name, path in found.items() if name in shard_by_name}

    def _has_copy(self, name: str, *paths: Path) -> bool:
        """Whether two files have the same tensor under a name, bit by bit."""
        a, b = (self._read_from(path, name) for path in paths)
        same_kind = (a.dtype, a.shape) == (b.dtype, b.shape)
        return same_kind and a.tobytes() == b.tobytes()

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor, in the dtype of the file."""
        return self._read_from(self._path_by_name[name], name)

    def _read_from(self, path: Path, name: str) -> np.ndarray:
        # The file is opened anew for each tensor: an open file keeps all that was read in memory.
        with open_safetensors(path) as file:
            try:
                return file.get_tensor(name)
            except (AttributeError, TypeError):  # NumPy has no dtype of this kind
                raise UserError(
                    f'{path}: {name} has dtype {file.get_slice(name).get_dtype()}, which is not '
                    f'supported: save the model in float32, bfloat16 or float16'
                ) from None

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


def _read_index(index: Path) -> dict[str, Path]:
    """Returns the shard of each tensor in an index.

    Raises:
      UserError: the index is damaged, or a shard is missing.
    """
    directory = index.parent
    try:
        weight_map = json.loads(index.read_text('utf-8'))['weight_map']
        shard_by_name = {name: directory / file for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(
            f'{index}: is not an index of shards ({type(error).__name__}: {error})'
        ) from None
    paths = sorted(set(shard_by_name.values()))
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f'{directory}: {len(missing)} of {len(paths)} shards that {index.name} lists are '
            f'missing, {missing[0]} first: copy them'
        )
    return shard_by_name


def open_safetensors(path: Path):
    """Opens a safetensors file. Raises UserError if it is damaged."""
    try:
        return safe_open(path, 'np')
    except (SafetensorError, OSError) as error:
        raise UserError(f'{path}: damaged or cut short ({error}): copy it again') from None
