"""The pieces of cut documents in shards on disk, so that no program holds a corpus in memory.

    pieces-00000.bin      pieces of the documents of shard 0, in UTF-8, concatenated
    starts-00000.npy      int64[n + 1], the start of each piece in that file
    documents-00000.npz   a DocumentTable
    contents.json         a Contents; written when all documents are cut
    checksums.json        size and CRC-32 of the files above; written last
    lock

A shard has whole documents. Its files are written atomically and `documents` is the last of them,
so a program that was killed resumes after its last shard.
"""

import dataclasses
import itertools
import json
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from cpt_jax.data.text_documents import TextDocument
from cpt_jax.storage.atomic_write import open_atomically, write_atomically
from cpt_jax.storage.cache import array_to_json, json_to_array, read_arrays
from cpt_jax.storage.file_checksums import Checksum, compute_checksum

CONTENTS = 'contents.json'
_BLOCK_BYTES = 1 << 22
# The columns of a DocumentTable with one value per document, and their types in `array`.
_COLUMNS = {'pieces': 'q', 'file_number': 'i', 'ordinal': 'q', 'unit': 'd'}


@dataclasses.dataclass(frozen=True)
class Contents:
    """What was cut.

    Attributes:
      shards: number of shards.
      digest: digest of all pieces, and of the documents that they belong to.
      counts: number of documents, of repeated ones and of those that are too short.
      latin: names of the files that are not UTF-8 and were read as Latin-1.
    """

    shards: int
    digest: str
    counts: Mapping[str, int]
    latin: Sequence[str]


class DocumentTable(NamedTuple):
    """The documents of a shard.

    Attributes:
      pieces: int64[d], number of pieces of each.
      file_number: int32[d], index of its file.
      ordinal: int64[d], index of the document in its file.
      unit: float64[d], the number in [0, 1) that decides the split.
      keys: uint64[k], hashes of the contents of all documents that were read for this shard and do
        not repeat an earlier one, also of those without enough pieces.
      notes: JSON: `next`, the place of the first document of the next shard; `counts` and `latin`
        up to there; `is_last`; and `checksums` of the shard's other files.
    """

    pieces: np.ndarray
    file_number: np.ndarray
    ordinal: np.ndarray
    unit: np.ndarray
    keys: np.ndarray
    notes: np.ndarray


class ShardPaths(NamedTuple):
    """Paths of the files of a shard."""

    pieces: Path
    starts: Path
    documents: Path


def get_shard_paths(folder: Path, shard: int) -> ShardPaths:
    """Returns the paths of a shard's files."""
    return ShardPaths(
        folder / f'pieces-{shard:05d}.bin',
        folder / f'starts-{shard:05d}.npy',
        folder / f'documents-{shard:05d}.npz',
    )


class ShardWriter:
    """Writes one shard.

    Attributes:
      size: bytes of the pieces so far.
      keys: see DocumentTable.
    """

    def __init__(self, paths: ShardPaths):
        self.size = 0
        self.keys = array('Q')
        self._paths = paths
        self._starts = array('q', [0])
        self._columns: dict[str, array] = {name: array(code) for name, code in _COLUMNS.items()}
        self._checksum = Checksum(0, 0)
        self._stack = ExitStack()
        self._file: BinaryIO | None = None

    def __enter__(self) -> 'ShardWriter':
        self._file = self._stack.enter_context(open_atomically(self._paths.pieces))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, document: TextDocument, unit: float, pieces: Sequence[str]) -> None:
        """Adds a document and its pieces."""
        assert self._file is not None
        # Lone surrogates, which UTF-8 cannot encode, become question marks.
        encoded = [piece.encode('utf-8', 'replace') for piece in pieces]
        for piece in encoded:
            self.size += len(piece)
            self._starts.append(self.size)
        data = b''.join(encoded)
        self._file.write(data)
        self._checksum = self._checksum.add(data)
        values = (len(pieces), *document.position, unit)
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)

    def finish(self, notes: Mapping[str, Any]) -> None:
        """Writes the rest of the shard; call it after the `with` block."""
        with open_atomically(self._paths.starts) as file:
            np.save(file, np.frombuffer(self._starts, np.int64))
        checksums = {
            self._paths.pieces.name: self._checksum,
            self._paths.starts.name: compute_checksum(self._paths.starts),
        }
        columns = {
            name: np.frombuffer(column, column.typecode) for name, column in self._columns.items()
        }
        table = DocumentTable(
            **columns,
            keys=np.frombuffer(self.keys, np.uint64),
            notes=json_to_array({**notes, 'checksums': checksums}),
        )
        with open_atomically(self._paths.documents) as file:
            np.savez(file, allow_pickle=False, **table._asdict())


def read_document_table(folder: Path, shard: int) -> DocumentTable | None:
    """Returns the documents of a shard; None if the shard is not finished."""
    arrays = read_arrays(get_shard_paths(folder, shard).documents)
    if arrays is None or arrays.keys() != set(DocumentTable._fields):
        return None
    return DocumentTable(**arrays)


def read_notes(table: DocumentTable) -> dict[str, Any]:
    """Returns the notes of a shard, with its checksums as `Checksum`."""
    notes = array_to_json(table.notes)
    checksums = {name: Checksum(*row) for name, row in notes['checksums'].items()}
    return {**notes, 'checksums': checksums}


def write_contents(folder: Path, contents: Contents) -> None:
    """Writes the file that says that all documents are cut."""
    text = json.dumps(dataclasses.asdict(contents), indent=1)
    write_atomically(folder / CONTENTS, text + '\n')


def read_contents(folder: Path) -> Contents | None:
    """Returns what was cut; None if it is not finished or cannot be read."""
    try:
        return Contents(**json.loads((folder / CONTENTS).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def compute_digest(folder: Path, shards: int) -> str:
    """Returns a digest of all pieces and of the documents that they belong to.

    It does not depend on the shards: it is that of all pieces, of their starts and of the index of
    each document's first piece.
    """
    digest = blake2b()
    for shard in range(shards):
        for block in _read_blocks(get_shard_paths(folder, shard).pieces):
            digest.update(block)
    size = 0
    for shard in range(shards):
        starts = np.load(get_shard_paths(folder, shard).starts)
        digest.update((starts[:-1] + size).tobytes())
        size += int(starts[-1])
    digest.update(np.array([size], np.int64).tobytes())
    for text in _iterate_repr(_iterate_first_pieces(folder, shards)):
        digest.update(text.encode())
    return digest.hexdigest()


def _read_blocks(path: Path) -> Iterator[bytes]:
    with path.open('rb') as file:
        while block := file.read(_BLOCK_BYTES):
            yield block


def _iterate_first_pieces(folder: Path, shards: int) -> Iterator[list[int]]:
    """Yields the index of the first piece of each document of a shard, for each shard."""
    pieces = 0
    for shard in range(shards):
        table = read_document_table(folder, shard)
        assert table is not None  # the caller has written or checked it
        yield (np.cumsum(table.pieces) - table.pieces + pieces).tolist()
        pieces += int(table.pieces.sum())


def _iterate_repr(parts: Iterator[list[int]]) -> Iterator[str]:
    """Yields the repr of the tuple of all numbers, in parts."""
    count = 0
    yield '('
    for numbers in parts:
        if numbers:
            yield (', ' if count else '') + ', '.join(map(str, numbers))
            count += len(numbers)
    yield ',)' if count == 1 else ')'


class PieceShards:
    """The pieces of all documents, read from the shards on access.

    The starts of the pieces are memory-mapped. The pieces are read with one read each, because a
    page of a mapped file that was read once counts as memory of the process.
    """

    def __init__(self, folder: Path, shards: int):
        paths = [get_shard_paths(folder, shard) for shard in range(shards)]
        self._files = [path.pieces for path in paths]
        self._starts = [np.asarray(np.load(path.starts, mmap_mode='r')) for path in paths]
        counts = [len(starts) - 1 for starts in self._starts]
        self._first_pieces = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return int(self._first_pieces[-1])

    def __getitem__(self, index: int) -> str:
        (piece,) = self.read(index, 1)
        return piece

    def read(self, index: int, count: int) -> list[str]:
        """Returns `count` consecutive pieces of one document.

        Raises:
          IndexError: there is no piece at `index`.
        """
        if not 0 <= index < len(self):
            raise IndexError(f'piece {index} of {len(self)}')
        shard = int(np.searchsorted(self._first_pieces, index, 'right')) - 1
        in_shard = index - int(self._first_pieces[shard])
        starts = self._starts[shard][in_shard : in_shard + count + 1].tolist()
        # Opening the file each time needs no handle that threads would share, and allows any
        # number of shards.
        with self._files[shard].open('rb', buffering=0) as file:
            data = os.pread(file.fileno(), starts[-1] - starts[0], starts[0])
        return [
            data[start - starts[0] : end - starts[0]].decode('utf-8')
            for start, end in itertools.pairwise(starts)
        ]
