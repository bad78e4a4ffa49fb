"""A directory of embeddings in shards, with the ids of the texts and metadata.

    vectors-00000-of-00004.npy  float32[n, D], of unit length
    ids-00000-of-00004.txt      n lines
    meta.json                   a VectorsMeta

Shards are in the order of the input. Files are written atomically, so a program that was killed
resumes at the first missing shard.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.atomic_write import open_atomically, write_atomically

_META = 'meta.json'
# Norms of normalised float32 vectors are 1 within 1e-6. A vector outside this larger tolerance was
# not normalised, or has overflowed.
_NORM_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class VectorsMeta:
    """Metadata of a directory of vectors: the model and the texts they were computed from.

    Attributes:
      model: `model_name` of the embedder.
      settings: `settings` of the embedder.
      side: 'x' for queries, 'y' for the texts to be found.
      input: path of the texts, for information only: a resumed program may read them elsewhere.
      fingerprint: digest of all ids and texts, in order.
      texts: number of texts.
      width: embedding dimension.
      shard_size: number of texts per shard; the last shard may have fewer.
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
        """Number of shards."""
        return -(-self.texts // self.shard_size)

    def get_shard_size(self, shard: int) -> int:
        """Returns the number of texts in a shard."""
        return min(self.shard_size, self.texts - shard * self.shard_size)

    def get_shard_paths(self, directory: Path, shard: int) -> tuple[Path, Path]:
        """Returns the paths of a shard's vectors and ids."""
        number = f'{shard:05d}-of-{self.shards:05d}'
        return directory / f'vectors-{number}.npy', directory / f'ids-{number}.txt'


class VectorWriter:
    """Writes vectors into a directory, shard by shard.

    Attributes:
      missing: indices of the shards that are not written yet.
    """

    def __init__(self, directory: Path, meta: VectorsMeta):
        """Creates the directory, or resumes with the shards that an earlier program left missing.

        Raises:
          UserError: the directory cannot be created, or holds other vectors.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f'{directory}: cannot be made: {error.strerror}') from None
        self._directory = directory
        self._meta = meta
        if (directory / _META).exists():
            _check_same_vectors(directory, _read_meta(directory), meta)
        elif any(directory.glob('vectors-*')):
            raise UserError(
                f'{directory}: holds vectors without {_META}, so their model is unknown: choose '
                f'another directory'
            )
        write_atomically(directory / _META, json.dumps(dataclasses.asdict(meta), indent=2) + '\n')
        for part in directory.glob('*.part'):  # left by a program that was killed
            part.unlink()
        self.missing = [
            shard
            for shard in range(meta.shards)
            if not meta.get_shard_paths(directory, shard)[0].exists()
        ]
        self._ids: list[str] = []
        self._vectors: list[np.ndarray] = []

    def add(self, ids: Sequence[str], vectors_NxD: np.ndarray) -> None:
        """Adds the next texts of the missing shards, and writes each shard when it is full.

        Args:
          ids: ids of the texts, in the order of the input without the texts of finished shards.
          vectors_NxD: float[n, D], of unit length.

        Raises:
          UserError: a vector is not finite or not of unit length.
        """
        check_unit_length(vectors_NxD, self._meta.model)
        self._ids += ids
        self._vectors.append(vectors_NxD)
        while self.missing and len(self._ids) >= self._meta.get_shard_size(self.missing[0]):
            shard = self.missing.pop(0)
            size = self._meta.get_shard_size(shard)
            waiting_NxD = np.concatenate(self._vectors)
            self._write_shard(shard, self._ids[:size], waiting_NxD[:size])
            self._ids = self._ids[size:]
            self._vectors = [waiting_NxD[size:]]

    def _write_shard(self, shard: int, ids: Sequence[str], vectors_NxD: np.ndarray) -> None:
        vectors_path, ids_path = self._meta.get_shard_paths(self._directory, shard)
        write_atomically(ids_path, ''.join(f'{name}\n' for name in ids))
        # The vectors are written after the ids: a shard is complete if its vectors file exists.
        with open_atomically(vectors_path) as file:
            np.save(file, vectors_NxD.astype(np.float32, copy=False))


class Vectors(NamedTuple):
    """The content of a directory of vectors.

    Attributes:
      meta: the metadata.
      ids: ids of all texts, in the order of the input.
      shards: float32[n, D] each, memory-mapped; concatenated, they are in the order of `ids`.
    """

    meta: VectorsMeta
    ids: list[str]
    shards: list[np.ndarray]


def read_vectors(directory: Path | str) -> Vectors:
    """Opens a directory of vectors.

    Raises:
      UserError: the directory is not one of vectors, is incomplete, or has a shard whose shape does
        not match its ids and metadata.
    """
    directory = Path(directory)
    meta = _read_meta(directory)
    paths = [meta.get_shard_paths(directory, shard) for shard in range(meta.shards)]
    missing = [path.name for pair in paths for path in pair if not path.exists()]
    if missing:
        raise UserError(
            f'{directory}: {len(missing)} of {2 * len(paths)} files are missing, {missing[0]} '
            f'first: start launch/embed.py again to write them'
        )
    shards = [np.load(path, mmap_mode='r') for path, _ in paths]
    # Not splitlines(), because an id may contain a carriage return.
    ids = [path.read_bytes().decode().split('\n')[:-1] for _, path in paths]
    for shard, names, (path, _) in zip(shards, ids, paths, strict=True):
        if shard.shape != (len(names), meta.width) or shard.dtype != np.float32:
            raise UserError(
                f'{path}: holds {shard.dtype}{list(shard.shape)}, not float32 '
                f'{[len(names), meta.width]} as in its ids and {_META}: delete the directory, and '
                f'embed again'
            )
    return Vectors(meta, [name for names in ids for name in names], shards)


def check_unit_length(vectors_NxD: np.ndarray, model: str) -> None:
    """Raises UserError unless all vectors are finite and of unit length.

    Args:
      vectors_NxD: the vectors.
      model: name of the model, for the message.
    """
    norms_N = np.linalg.norm(vectors_NxD, axis=1)
    # Written as ~(... < ...) so that a norm of NaN counts as bad.
    bad = np.count_nonzero(~(np.abs(norms_N - 1) < _NORM_TOLERANCE))
    if bad:
        raise UserError(
            f'--model {model}: {bad} of {len(vectors_NxD)} vectors are not finite or not of unit '
            f'length: use an earlier checkpoint'
        )


def _read_meta(directory: Path) -> VectorsMeta:
    path = directory / _META
    try:
        return VectorsMeta(**json.loads(path.read_text('utf-8')))
    except FileNotFoundError:
        raise UserError(
            f'{directory}: no {_META}: give a directory that launch/embed.py wrote'
        ) from None
    except (ValueError, TypeError) as error:
        raise UserError(
            f'{path}: cannot be read ({error}): delete the directory, and embed again'
        ) from None


def _check_same_vectors(directory: Path, stored: VectorsMeta, expected: VectorsMeta) -> None:
    """Raises UserError if any metadata except `input` differ; the fingerprint covers the texts."""
    before = dataclasses.asdict(stored)
    now = json.loads(json.dumps(dataclasses.asdict(expected)))  # tuples become lists
    differing = [key for key in now if key != 'input' and before[key] != now[key]]
    if differing:
        differences = ', '.join(
            f'{key}={before[key]}' if key in ('model', 'side', 'shard_size') else f'other {key}'
            for key in differing
        )
        raise UserError(
            f'{directory}: holds other vectors ({differences}): choose another directory, or '
            f'delete it'
        )
