"""A directory of vectors: shards in the order of the input, the ids of their texts beside them, and
what they were made of.

    vectors-00000-of-00004.npy  float32[n, D], of unit length
    ids-00000-of-00004.txt      n lines
    meta.json                   a Meta

A shard that is there is whole, so a program that was killed goes on with the first one that is
missing.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.atomic_write import replacing, write_atomically

_META = 'meta.json'
# In float32, norms are 1 within 1e-6. A vector further off was not normalised, or has overflowed.
_NORM_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Meta:
    """What the vectors of a directory are, and where they come from.

    Attributes:
      model: the embedder's name.
      settings: the embedder's.
      side: 'x' for queries, 'y' for what they look for.
      input: where the texts were read, for people: the same texts may move.
      fingerprint: of all ids and texts, in their order.
      texts: their number.
      width: units of a vector.
      shard_size: texts of a shard; the last one may have fewer.
    """

    model: str
    settings: Mapping[str, Any]
    side: str
    input: str
    fingerprint: str
    texts: int
    width: int
    shard_size: int

    @property
    def shards(self) -> int:
        return -(-self.texts // self.shard_size)

    def size(self, shard: int) -> int:
        """Texts of a shard."""
        return min(self.shard_size, self.texts - shard * self.shard_size)

    def paths(self, directory: Path, shard: int) -> tuple[Path, Path]:
        """Where a shard's vectors and its ids are."""
        number = f'{shard:05d}-of-{self.shards:05d}'
        return directory / f'vectors-{number}.npy', directory / f'ids-{number}.txt'


class VectorWriter:
    """Fills a directory, shard after shard.

    Attributes:
      missing: numbers of the shards that are not there yet.
    """

    def __init__(self, directory: Path, meta: Meta):
        """Claims the directory, or goes on with what an earlier call left in it.

        Raises:
          UserError: it holds other vectors.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f'{directory}: cannot be made: {error.strerror}') from None
        self._directory, self._meta = directory, meta
        if (directory / _META).exists():
            _check_same(directory, _read_meta(directory), meta)
        elif any(directory.glob('vectors-*')):
            raise UserError(
                f'{directory}: holds vectors without {_META}, so nobody knows whose: choose '
                f'another directory'
            )
        write_atomically(directory / _META, json.dumps(dataclasses.asdict(meta), indent=2) + '\n')
        for unfinished in directory.glob('*.part'):  # of a program that was killed
            unfinished.unlink()
        self.missing = [
            shard for shard in range(meta.shards) if not meta.paths(directory, shard)[0].exists()
        ]
        self._ids: list[str] = []
        self._vectors: list[np.ndarray] = []

    def add(self, ids: Sequence[str], vectors_NxD: np.ndarray) -> None:
        """Takes the next texts of the missing shards, in order; writes each shard when it is full.

        Raises:
          UserError: a vector is not finite or not of unit length.
        """
        check_unit(vectors_NxD, self._meta.model)
        self._ids += ids
        self._vectors.append(vectors_NxD)
        while self.missing and len(self._ids) >= self._meta.size(self.missing[0]):
            shard = self.missing.pop(0)
            size = self._meta.size(shard)
            waiting_NxD = np.concatenate(self._vectors)
            self._write(shard, self._ids[:size], waiting_NxD[:size])
            self._ids, self._vectors = self._ids[size:], [waiting_NxD[size:]]

    def _write(self, shard: int, ids: Sequence[str], vectors_NxD: np.ndarray) -> None:
        vectors_path, ids_path = self._meta.paths(self._directory, shard)
        write_atomically(ids_path, ''.join(f'{name}\n' for name in ids))
        with replacing(vectors_path) as file:  # last: where it is, the shard is whole
            np.save(file, vectors_NxD.astype(np.float32, copy=False))


class Vectors(NamedTuple):
    """What a directory holds.

    Attributes:
      meta: what it is.
      ids: of all texts, in the order of the input.
      shards: float32[n, D] each, read from the disk where they are touched; together in the order
        of `ids`.
    """

    meta: Meta
    ids: list[str]
    shards: list[np.ndarray]


def read_vectors(directory: Path | str) -> Vectors:
    """Opens a directory that is complete. Raises UserError for any other."""
    directory = Path(directory)
    meta = _read_meta(directory)
    paths = [meta.paths(directory, shard) for shard in range(meta.shards)]
    missing = [path.name for pair in paths for path in pair if not path.exists()]
    if missing:
        raise UserError(
            f'{directory}: {len(missing)} of {2 * len(paths)} files are missing, {missing[0]} '
            f'first: start launch/embed.py again, to go on'
        )
    shards = [np.load(path, mmap_mode='r') for path, _ in paths]
    # An id may hold a carriage return, which ends no line here.
    ids = [path.read_bytes().decode().split('\n')[:-1] for _, path in paths]
    for shard, names, (path, _) in zip(shards, ids, paths, strict=True):
        if shard.shape != (len(names), meta.width) or shard.dtype != np.float32:
            raise UserError(
                f'{path}: holds {shard.dtype}{list(shard.shape)}, not float32 '
                f'{[len(names), meta.width]} as its ids and {_META} say'
            )
    return Vectors(meta, [name for names in ids for name in names], shards)


def check_unit(vectors_NxD: np.ndarray, model: str) -> None:
    """Raises UserError unless all vectors are finite and of unit length."""
    norms_N = np.linalg.norm(vectors_NxD, axis=1)
    # A norm that is not finite is bad too.
    bad = np.count_nonzero(~(np.abs(norms_N - 1) < _NORM_TOLERANCE))
    if bad:
        what = f'{bad} of {len(vectors_NxD)} vectors are not finite or not of unit length'
        raise UserError(f'--model {model}: {what}: take an earlier checkpoint')


def _read_meta(directory: Path) -> Meta:
    path = directory / _META
    try:
        return Meta(**json.loads(path.read_text('utf-8')))
    except FileNotFoundError:
        raise UserError(
            f'{directory}: no {_META}: launch/embed.py writes such a directory'
        ) from None
    except (ValueError, TypeError) as error:
        raise UserError(
            f'{path}: cannot be read ({error}): delete the directory, and embed again'
        ) from None


def _check_same(directory: Path, there: Meta, here: Meta) -> None:
    """But for `input`: the texts themselves are compared."""
    before, now = dataclasses.asdict(there), json.loads(json.dumps(dataclasses.asdict(here)))
    differing = [key for key in now if key != 'input' and before[key] != now[key]]
    if differing:
        told = ', '.join(
            f'{key}={before[key]}' if key in ('model', 'side', 'shard_size') else f'other {key}'
            for key in differing
        )
        raise UserError(
            f'{directory}: holds other vectors ({told}): choose another directory, or delete it'
        )
