"""Files of weights: which tensors are in which shard, and which process writes it."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from safetensors.numpy import save_file

from cpt_jax.model.formats.safetensors_files import INDEX
from cpt_jax.storage.json_files import write_json

T = TypeVar('T')
Tensors = Iterable[tuple[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """The files of a model's weights, decided before any weight is read.

    Attributes:
      names_by_file: names of the tensors in each file; files and tensors in order.
      total_bytes: bytes of all tensors.
    """

    names_by_file: Mapping[str, Sequence[str]]
    total_bytes: int

    @classmethod
    def make(cls, bytes_by_name: Mapping[str, int], shard_bytes: int) -> 'ShardPlan':
        """Decides on the files.

        Args:
          bytes_by_name: bytes of each tensor, in the order in which they come.
          shard_bytes: maximum bytes per file, unless a single tensor is larger.
        """
        shards = [*_split_into_shards(bytes_by_name.items(), shard_bytes)]
        names_by_file = dict(zip(_name_shards(len(shards)), shards, strict=True))
        return cls(names_by_file, sum(bytes_by_name.values()))

    def list_own_names(self) -> set[str]:
        """Returns the names of the tensors that this process writes."""
        return {name for file in self._list_own_files() for name in self.names_by_file[file]}

    def _list_own_files(self) -> list[str]:
        return take_own_shards([*self.names_by_file])

    def write(self, tensors: Tensors, directory: Path) -> None:
        """Writes the files of this process.

        Args:
          tensors: the tensors of `list_own_names`, in order. The iterator is read to its end.
          directory: directory to write to.
        """
        remaining = iter(tensors)
        # While a thread writes a shard, this process takes part in gathering those of others.
        with ThreadPoolExecutor(1) as thread:
            writing: Future[None] | None = None
            for file in self._list_own_files():
                shard: dict[str, np.ndarray] = {}
                for name in self.names_by_file[file]:
                    found, array = next(remaining)
                    assert found == name, f'{found} instead of {name}'
                    if writing:
                        writing.result()  # two shards are never in memory
                        writing = None
                    shard[name] = array
                    del array
                writing = thread.submit(_save_shard, directory / file, shard)
                del shard
            for name, _ in remaining:
                raise AssertionError(f'{name} is in no shard')
            if writing:
                writing.result()

    def write_index(self, directory: Path) -> None:
        """Writes the index of the files; nothing if there is one file only."""
        _write_index(directory, self.names_by_file, self.total_bytes)


def take_own_shards(files: Sequence[T]) -> list[T]:
    """Returns those of the shards, in order, that this process writes."""
    return [*files[jax.process_index() :: jax.process_count()]]


def write_tensors(tensors: Tensors, directory: Path, shard_bytes: int) -> None:
    """Writes tensors as model.safetensors, or as several shards and their index.

    Args:
      tensors: name and array of each.
      directory: directory to write to.
      shard_bytes: int, maximum bytes per file, unless a single tensor is larger.
    """
    shards: list[tuple[Path, list[str]]] = []
    total = 0
    sized = (((name, array), array.nbytes) for name, array in tensors)
    for number, shard in enumerate(_split_into_shards(sized, shard_bytes)):
        path = directory / f'.shard-{number}'
        _save_shard(path, dict(shard))
        shards.append((path, [name for name, _ in shard]))
        total += sum(array.nbytes for _, array in shard)
    files = _name_shards(len(shards))
    for (path, _), file in zip(shards, files, strict=True):
        path.rename(directory / file)
    names = [names for _, names in shards]
    _write_index(directory, dict(zip(files, names, strict=True)), total)


def _split_into_shards(sized: Iterable[tuple[T, int]], max_bytes: int) -> Iterator[list[T]]:
    """Groups tensors, in order, into shards of at most `max_bytes` or of one larger tensor.

    Args:
      sized: tensors, or their names, each with its number of bytes.
      max_bytes: maximum bytes of a shard.
    """
    shard: list[T] = []
    size = 0
    for tensor, tensor_bytes in sized:
        if shard and size + tensor_bytes > max_bytes:
            yield shard
            shard = []
            size = 0
        shard.append(tensor)
        size += tensor_bytes
    yield shard


def _name_shards(count: int) -> list[str]:
    if count == 1:
        return ['model.safetensors']
    return [f'model-{number:05d}-of-{count:05d}.safetensors' for number in range(1, count + 1)]


def _save_shard(path: Path, shard: Mapping[str, np.ndarray]) -> None:
    save_file(
        {name: np.ascontiguousarray(array) for name, array in shard.items()},
        path,
        metadata={'format': 'pt'},
    )
    path.chmod(0o644)  # safetensors makes it readable by its owner only


def _write_index(
    directory: Path, names_by_file: Mapping[str, Sequence[str]], total_bytes: int
) -> None:
    if len(names_by_file) == 1:
        return
    weight_map = {name: file for file, names in names_by_file.items() for name in names}
    index = {'metadata': {'total_size': total_bytes}, 'weight_map': weight_map}
    write_json(directory / INDEX, index)
