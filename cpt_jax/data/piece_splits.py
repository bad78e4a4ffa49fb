"""The documents of a split, in memory-mapped files beside the shards of their pieces."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from cpt_jax.data.pairs import digest_texts
from cpt_jax.data.piece_shards import read_document_table
from cpt_jax.data.split import check_split_size, make_split_mask
from cpt_jax.storage.atomic_write import open_atomically
from cpt_jax.storage.file_checksums import add_checksums, find_damaged

_ROW = np.dtype([('first_piece', np.int64), ('file_number', np.int32), ('ordinal', np.int64)])


class DocumentSplit(NamedTuple):
    """The D documents of a split.

    Attributes:
      starts: int64[D + 1]; document d has the pairs `starts[d] : starts[d + 1]` of the split. A
        document with n pieces has n - 1 pairs.
      rows: _ROW[D]: the index of each document's first piece, the index of its file, and its index
        in that file.
    """

    starts: np.ndarray
    rows: np.ndarray


def open_document_split(
    folder: Path, shards: int, split: str, holdout: float, source: str, verify: bool
) -> DocumentSplit:
    """Returns the documents of a split, and writes its files if they are missing or damaged.

    The caller has the lock of the folder. If the folder cannot be written, the documents are held
    in memory.

    Args:
      folder: folder of the shards.
      shards: number of shards.
      split: 'train', 'heldout' or 'all'.
      holdout: fraction of the documents that is in 'heldout' and not in 'train'.
      source: name of the source, for messages.
      verify: whether to read existing files in full to find out whether they are undamaged.

    Raises:
      UserError: the split is empty.
    """
    name = f'split-{digest_texts(split, repr(float(holdout)))}'
    paths = (folder / f'{name}-starts.npy', folder / f'{name}-rows.npy')
    if not find_damaged(folder, [path.name for path in paths], verify):
        return _map_arrays(paths)
    size = sum(len(rows) for _, rows in _iterate_split(folder, shards, split, holdout))
    check_split_size(size, split, source, holdout)
    parts = _iterate_split(folder, shards, split, holdout)
    try:
        with ExitStack() as stack:
            starts_file, rows_file = (stack.enter_context(open_atomically(path)) for path in paths)
            _write_header(starts_file, np.dtype(np.int64), size + 1)
            _write_header(rows_file, _ROW, size)
            starts_file.write(np.zeros(1, np.int64).tobytes())
            for ends, rows in parts:
                starts_file.write(ends.tobytes())
                rows_file.write(rows.tobytes())
        add_checksums(folder, paths)
    except OSError:
        ends_of_all, rows_of_all = zip(*_iterate_split(folder, shards, split, holdout), strict=True)
        starts = np.concatenate([np.zeros(1, np.int64), *ends_of_all])
        return DocumentSplit(starts, np.concatenate(rows_of_all))
    return _map_arrays(paths)


def _iterate_split(
    folder: Path, shards: int, split: str, holdout: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields, for each shard, int64[d]: the ends of the documents' pairs; and their rows."""
    pieces = 0
    pairs = 0
    for shard in range(shards):
        table = read_document_table(folder, shard)
        assert table is not None  # the caller has checked the shards
        chosen = make_split_mask(split, table.unit < holdout)
        rows = np.zeros(int(chosen.sum()), _ROW)
        rows['first_piece'] = (np.cumsum(table.pieces) - table.pieces + pieces)[chosen]
        rows['file_number'] = table.file_number[chosen]
        rows['ordinal'] = table.ordinal[chosen]
        ends = pairs + np.cumsum(table.pieces[chosen] - 1)
        yield ends, rows
        pieces += int(table.pieces.sum())
        pairs = int(ends[-1]) if len(ends) else pairs


def _write_header(file: BinaryIO, dtype: np.dtype, size: int) -> None:
    """Writes the header of a .npy file, whose values follow in parts."""
    np.lib.format.write_array_header_1_0(
        file,
        {
            'descr': np.lib.format.dtype_to_descr(dtype),
            'fortran_order': False,
            'shape': (size,),
        },
    )


def _map_arrays(paths: Sequence[Path]) -> DocumentSplit:
    return DocumentSplit(*(np.asarray(np.load(path, mmap_mode='r')) for path in paths))
