"""Directories with several files of weights; tests/oracles loads them with transformers."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.model.formats.torch_inputs import write_torch_file

Tensors = Mapping[str, np.ndarray]


class Writer:
    """Writes files of one format to a folder."""

    def __init__(self, folder: Path, format: str):
        self.folder = folder
        self.format = format
        self.stem = 'pytorch_model' if format == 'bin' else 'model'

    def write_single(self, tensors: Tensors) -> None:
        """Writes all tensors to one file."""
        self._write(f'{self.stem}.{self.format}', tensors)

    def write_shard(self, number: int, tensors: Tensors) -> None:
        """Writes one of two shards."""
        self._write(self.name_shard(number), tensors)

    def write_index(self, numbers: Mapping[str, int]) -> None:
        """Writes the index; `numbers`: shard of each tensor."""
        weight_map = {name: self.name_shard(number) for name, number in numbers.items()}
        content = {'metadata': {'total_size': 1}, 'weight_map': weight_map}
        path = self.folder / f'{self.stem}.{self.format}.index.json'
        path.write_text(json.dumps(content))

    def name_shard(self, number: int) -> str:
        """Returns the file name of a shard."""
        return f'{self.stem}-{number:05d}-of-00002.{self.format}'

    def _write(self, name: str, tensors: Tensors) -> None:
        if self.format == 'bin':
            write_torch_file(self.folder / name, tensors)
        else:
            save_file(dict(tensors), self.folder / name, metadata={'format': 'pt'})


def _write_shards(
    tensors: Tensors,
    folder: Path,
    format: str,
    single: bool = False,
    shards: bool = True,
    old: bool = False,
    extra: bool = False,
    copy: bool = False,
    moved: bool = False,
    twice: bool = False,
) -> None:
    """Writes two shards with an index.

    Args:
      tensors: tensors that transformers loads.
      folder: folder to write to.
      format: 'safetensors' or 'bin'.
      single: whether a single file has the tensors, and the index is of an earlier save.
      shards: whether the shards exist.
      old: whether there is a shard of an earlier save that the index does not list.
      extra: whether the second shard has a tensor that the index does not list.
      copy: whether the first shard has another tensor of a name in the second.
      moved: whether the index assigns a tensor to the first shard that only the second has.
      twice: whether the second shard has a copy of a tensor that the index assigns to the first.
    """
    writer = Writer(folder, format)
    names = sorted(tensors)
    first = {name: tensors[name] for name in names[:2]}
    second = {name: tensors[name] for name in names[2:]}
    numbers = dict.fromkeys(first, 1) | dict.fromkeys(second, 2)
    if single:
        writer.write_single(tensors)
        first = {name: array + 1 for name, array in first.items()}
    if copy:
        first[names[2]] = tensors[names[2]] + 1
    if twice:
        second[names[0]] = tensors[names[0]]
    if extra:
        second['another.weight'] = np.ones(3, np.float32)
    if old:
        writer.write_shard(3, {name: array + 1 for name, array in tensors.items()})
    if moved:
        numbers[names[2]] = 1
    if shards:
        writer.write_shard(1, first)
        writer.write_shard(2, second)
    writer.write_index(numbers)


def _write_both(tensors: Tensors, folder: Path) -> None:
    Writer(folder, 'bin').write_single({name: array + 1 for name, array in tensors.items()})
    Writer(folder, 'safetensors').write_single(tensors)


def _write_shards_and_bin(tensors: Tensors, folder: Path) -> None:
    Writer(folder, 'bin').write_single({name: array + 1 for name, array in tensors.items()})
    _write_shards(tensors, folder, 'safetensors')


_OF_ONE_FORMAT = {
    'shards': {},
    'single file beside an old index': {'single': True, 'shards': False},
    'single file beside old shards': {'single': True},
    'shard that the index does not list': {'old': True},
    'tensor that the index does not list': {'extra': True},
    'copy in an earlier shard': {'copy': True},
    'tensor in another shard': {'moved': True},
    'equal copy in a later shard': {'twice': True},
}
# Each writes tensors to a folder, so that transformers loads them from there.
LAYOUTS: dict[str, Callable[[Tensors, Path], None]] = {
    'both formats': _write_both,
    'shards beside the other format': _write_shards_and_bin,
    **{
        f'{format}: {name}': partial(_write_shards, format=format, **options)
        for format in ('safetensors', 'bin')
        for name, options in _OF_ONE_FORMAT.items()
    },
}
