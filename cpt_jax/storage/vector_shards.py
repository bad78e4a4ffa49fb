"""A directory of embeddings in shards, with the ids of the texts and metadata.

    vectors-00000-of-00004.npy  float32[n, D], of unit length, or int8 codes (vector_codes.py)
    ranges.npy                  float32[2, D]: minimum and maximum of each dimension, for int8 codes
    ids-00000-of-00004.txt      n lines
    meta.json                   a VectorsMeta
    checksums.json              size and CRC-32 of the files of each shard, and of the next file
    text_keys.npy               uint64[N], a hash of each text, by which its vector is found

Shards are in the order of the input. Files are written atomically, so a program that was killed
resumes at the first missing shard. A shard whose files do not match their checksums counts as
missing. Directories of earlier versions have no checksums; shards without one are checked for their
shape alone.
"""

import dataclasses
import io
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.atomic_write import write_atomically
from cpt_jax.storage.file_checksums import (
    CHECKSUMS,
    Checksum,
    encode_checksums,
    is_undamaged,
    read_checksums,
)
from cpt_jax.storage.paths import is_on_bucket
from cpt_jax.storage.remote import RemoteFile, RemoteFiles, compute_crc32c, fetch
from cpt_jax.storage.store_errors import explain_errors
from cpt_jax.storage.text_lines import find_paths
from cpt_jax.storage.vector_codes import quantize
from cpt_jax.storage.vectors_meta import META, VectorsMeta, check_same_vectors, load_meta

_TEXT_KEYS = 'text_keys.npy'
_RANGES = 'ranges.npy'
# Norms of normalised float32 vectors are 1 within 1e-6. A vector outside this larger tolerance was
# not normalised, or has overflowed.
_NORM_TOLERANCE = 1e-3


class VectorWriter:
    """Writes vectors into a directory, shard by shard.

    Attributes:
      missing: indices of the shards that are not written yet, or damaged.
      ranges_2xD: ranges of int8 codes; None for other precisions, or before `set_ranges`.
    """

    def __init__(self, directory: Path, meta: VectorsMeta):
        """Creates the directory, or resumes with the shards that an earlier program left missing.

        Raises:
          UserError: the directory cannot be created, or holds other vectors.
        """
        self._directory = directory
        self._meta = meta
        self._ids: list[str] = []
        self._vectors: list[np.ndarray] = []
        if is_on_bucket(directory):
            with explain_errors('--output', str(directory), 'written'):
                self._open(directory, meta)
        else:
            try:
                directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f'{directory}: cannot be made: {error.strerror}') from None
            self._open(directory, meta)

    def _open(self, directory: Path, meta: VectorsMeta) -> None:
        """Writes the metadata, and finds the missing shards."""
        if (directory / META).exists():
            check_same_vectors(directory, load_meta(directory), meta)
        elif find_paths(directory, 'vectors-*'):
            raise UserError(
                f'{directory}: holds vectors without {META}, so their model is unknown: choose '
                f'another directory'
            )
        _write(directory / META, json.dumps(dataclasses.asdict(meta), indent=2).encode() + b'\n')
        for part in find_paths(directory, '*.part'):  # left by a program that was killed
            part.unlink()
        self._checksums = read_checksums(directory)
        self._objects: Mapping[str, RemoteFile] = {}
        if is_on_bucket(directory):
            self._objects = RemoteFiles.find(str(directory), '--output').files
        self.ranges_2xD = _read_ranges(directory, meta, self._checksums)
        self.missing = [shard for shard in range(meta.shards) if not self._is_written(shard)]

    @property
    def needs_ranges(self) -> bool:
        """Whether `set_ranges` must be called before vectors are added."""
        return self._meta.precision == 'int8' and self.ranges_2xD is None

    def set_ranges(self, ranges_2xD: np.ndarray) -> None:
        """Stores the ranges of int8 codes; all shards are then written with them."""
        content = io.BytesIO()
        np.save(content, ranges_2xD)
        _write(self._directory / _RANGES, content.getvalue())
        # The shards of other ranges are not valid any more.
        kept = {name: found for name, found in self._checksums.items() if name == _TEXT_KEYS}
        self._checksums = kept | {_RANGES: Checksum(0, 0).add(content.getvalue())}
        _write(self._directory / CHECKSUMS, encode_checksums(self._checksums))
        self.ranges_2xD = ranges_2xD
        self.missing = list(range(self._meta.shards))

    def write_text_keys(self, keys: Iterable[int]) -> None:
        """Writes the keys of all texts, unless an earlier program has written them.

        Args:
          keys: a hash of each text, below 2**64, in the order of the input. Not read if the file is
            there, undamaged.
        """
        path = self._directory / _TEXT_KEYS
        if self._is_file_whole(path):
            return
        content = io.BytesIO()
        np.save(content, np.fromiter(keys, np.uint64, self._meta.texts))
        self._write_with_checksum({path: content.getvalue()})

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

    def _is_written(self, shard: int) -> bool:
        """Returns whether a shard is complete; warns about a damaged one."""
        paths = self._meta.get_shard_paths(self._directory, shard)
        if is_on_bucket(self._directory):
            return all(self._is_file_whole(path) for path in paths)
        if not all(path.exists() for path in paths):
            return False
        try:
            ids, _ = _read_shard(*paths, self._meta, self._checksums)
        except UserError as error:
            logging.warning('shard %d is embedded again: %s', shard, error)
            return False
        return len(ids) == self._meta.get_shard_size(shard)

    def _is_file_whole(self, path: Path) -> bool:
        """Returns whether a file has the size and the checksum with which it was written; warns if
        it has other ones. Nothing is read from a bucket, which has computed the CRC-32C.
        """
        expected = self._checksums.get(path.name)
        if expected is None:
            return False
        if is_on_bucket(path):
            found = self._objects.get(path.name)
            if found is None:
                return False
            # Objects of earlier versions, and other stores, have no CRC-32C.
            crc32c = found.hashes.get('crc32c', '')
            is_same = crc32c == expected.stamp or not expected.stamp
            is_whole = found.size == expected.size and is_same
        else:
            is_whole = is_undamaged(path, expected)
        if not is_whole:
            logging.warning('%s is damaged, and is written again', path)
        return is_whole

    def _write_shard(self, shard: int, ids: Sequence[str], vectors_NxD: np.ndarray) -> None:
        vectors_path, ids_path = self._meta.get_shard_paths(self._directory, shard)
        content = io.BytesIO()
        vectors_NxD = vectors_NxD.astype(np.float32, copy=False)
        np.save(content, quantize(vectors_NxD, self._meta.precision, self.ranges_2xD))
        files = {
            ids_path: ''.join(f'{name}\n' for name in ids).encode(),
            vectors_path: content.getvalue(),
        }
        self._write_with_checksum(files)

    def _write_with_checksum(self, files: Mapping[Path, bytes]) -> None:
        for path, data in files.items():
            _write(path, data)
            stamp = compute_crc32c(data) if is_on_bucket(path) else ''
            self._checksums[path.name] = Checksum(0, 0, stamp).add(data)
        _write(self._directory / CHECKSUMS, encode_checksums(self._checksums))


class Vectors(NamedTuple):
    """The content of a directory of vectors.

    Attributes:
      meta: the metadata.
      ids: ids of all texts, in the order of the input.
      shards: float32[n, D] each, or codes of `meta.precision`, memory-mapped; concatenated, they
        are in the order of `ids`.
      ranges_2xD: ranges of int8 codes, for `vector_codes.dequantize`; None for other precisions.
    """

    meta: VectorsMeta
    ids: list[str]
    shards: list[np.ndarray]
    ranges_2xD: np.ndarray | None = None


def read_vectors(directory: Path | str, verify: bool = True) -> Vectors:
    """Opens a directory of vectors.

    Args:
      directory: the directory, local or in a bucket (gs://...), which is copied into the cache.
      verify: whether to read all vectors once to compare their checksums, at the speed of the disk
        (docs/export.md has a measurement). Sizes, shapes and ids are checked in any case.

    Raises:
      UserError: the directory is not one of vectors, is incomplete, or has a damaged shard.
    """
    directory = fetch(directory, 'vectors')
    meta = load_meta(directory)
    paths = [meta.get_shard_paths(directory, shard) for shard in range(meta.shards)]
    missing = [path.name for pair in paths for path in pair if not path.exists()]
    if missing:
        raise UserError(
            f'{directory}: {len(missing)} of {2 * len(paths)} files are missing, {missing[0]} '
            f'first: start launch/embed.py again to write them'
        )
    checksums = read_checksums(directory)
    opened = [_read_shard(*pair, meta, checksums, verify) for pair in paths]
    ids = [name for names, _ in opened for name in names]
    ranges_2xD = _read_ranges(directory, meta, checksums)
    if meta.precision == 'int8' and ranges_2xD is None:
        raise UserError(f'{directory / _RANGES}: is missing or damaged, so the codes mean nothing')
    return Vectors(meta, ids, [vectors_NxD for _, vectors_NxD in opened], ranges_2xD)


def _write(path: Path, data: bytes) -> None:
    """Writes a file of a local directory atomically, or an object of a bucket, which always is."""
    if not is_on_bucket(path):
        write_atomically(path, data)
        return
    with explain_errors('--output', str(path), 'written'):
        path.write_bytes(data)


def _read_ranges(
    directory: Path, meta: VectorsMeta, checksums: Mapping[str, Checksum]
) -> np.ndarray | None:
    """Returns the ranges of int8 codes; None if there are none, or they are damaged."""
    path = directory / _RANGES
    if meta.precision != 'int8' or _RANGES not in checksums or not path.exists():
        return None
    content = path.read_bytes()
    if Checksum(0, 0).add(content) != checksums[_RANGES]:
        return None
    return np.load(io.BytesIO(content))


def _read_shard(
    vectors_path: Path,
    ids_path: Path,
    meta: VectorsMeta,
    checksums: Mapping[str, Checksum],
    verify: bool = True,
) -> tuple[list[str], np.ndarray]:
    """Returns the ids of a shard and its vectors, memory-mapped.

    Raises:
      UserError: a file is damaged, or the vectors do not match the ids or the metadata.
    """
    for path in (vectors_path, ids_path):
        expected = checksums.get(path.name)
        if expected is None:  # written by an earlier version
            continue
        is_good = path.stat().st_size == expected.size
        if is_good and (verify or path is ids_path):
            is_good = is_undamaged(path, expected)
        if not is_good:
            raise UserError(
                f'{path}: is damaged (its size or checksum differs from {CHECKSUMS}): start '
                f'launch/embed.py again to write it anew'
            )
    try:
        vectors_NxD = np.load(vectors_path, mmap_mode='r')
        # Not splitlines(), because an id may contain a carriage return.
        ids = ids_path.read_bytes().decode().split('\n')[:-1]
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f'{vectors_path}: is damaged ({error}): start launch/embed.py again to write it anew'
        ) from None
    if vectors_NxD.shape != (len(ids), meta.columns) or vectors_NxD.dtype != meta.dtype:
        raise UserError(
            f'{vectors_path}: holds {vectors_NxD.dtype}{list(vectors_NxD.shape)}, not {meta.dtype} '
            f'{[len(ids), meta.columns]} as in its ids and {META}: start launch/embed.py again to '
            f'write it anew'
        )
    return ids, vectors_NxD


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


def read_text_keys(directory: Path | str, meta: VectorsMeta) -> np.ndarray:
    """Returns uint64[N]: the keys of all texts of a directory of vectors.

    Raises:
      UserError: an earlier version wrote the directory, or the file is damaged.
    """
    path = fetch(directory, 'vectors') / _TEXT_KEYS
    expected = read_checksums(path.parent).get(_TEXT_KEYS)
    if expected and path.exists() and not is_undamaged(path, expected):
        raise UserError(
            f'{path}: is damaged (its size or checksum differs from {CHECKSUMS}): start '
            f'launch/embed.py again to write it anew'
        )
    try:
        keys_N = np.load(path)
    except FileNotFoundError:
        raise UserError(
            f'{path}: is missing, as in directories of earlier versions: start launch/embed.py '
            f'again, which adds it'
        ) from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f'{path}: is damaged ({error}): delete it, and start launch/embed.py again'
        ) from None
    if keys_N.shape != (meta.texts,) or keys_N.dtype != np.uint64:
        raise UserError(
            f'{path}: holds {keys_N.dtype}{list(keys_N.shape)}, not uint64[{meta.texts}]: delete '
            f'it, and start launch/embed.py again'
        )
    return keys_N
