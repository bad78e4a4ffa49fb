"""Pairs, with optional hard negatives, from CSV files with a header, such as SimCSE's NLI file with
`sent0,sent1,hard_neg`. Quotes follow RFC 4180.
"""

import csv
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tqdm import tqdm

from cpt_jax.data.equality import LATEST_RULE
from cpt_jax.data.problems import BadRow, decode_text_field
from cpt_jax.data.rows import BOM, RowSource, to_field_names
from cpt_jax.runtime.errors import UserError

csv.field_size_limit(
    1 << 30
)  # long texts are reported by the check of `max_chars`, with their line


class Columns(NamedTuple):
    """The columns to read.

    Attributes:
      x, y: names of the columns with the texts.
      negatives: names of the columns with hard negatives; cells may be empty.
      id: name of the column with the pair's id; the column is optional.
      group: see RowFormat.
      max_chars: maximum number of characters of a text.
      separator: character between cells.
    """

    x: str
    y: str
    negatives: tuple[str, ...]
    id: str
    group: tuple[str, ...]
    max_chars: int
    separator: str

    def iterate_rows(self, path: Path, bar: tqdm) -> Iterator[tuple[int, int, bytes]]:
        """Yields (first line, offset, bytes) of each row after the header.

        A row spans several lines if a quoted cell contains line breaks.
        """
        with path.open('rb') as file:
            rows = _read_raw_rows(file, self.separator)
            next(rows, None)
            for row in rows:
                bar.update(len(row[2]))
                yield row

    def read_header(self, path: Path) -> str:
        """Returns the header of a file."""
        return _read_first_row(path, self.separator).decode('utf-8', 'surrogateescape')

    def parse(self, row: bytes, path: Path) -> dict:
        """Returns the row's cells by column name, after checking x, y and negatives.

        Raises:
          BadRow: the row is invalid.
        """
        names = _read_column_names(path, path.stat().st_mtime_ns, self.separator)
        for name in (self.x, self.y, *self.negatives):
            if name not in names:
                raise BadRow(
                    f'no column {name!r}', f'the header has {", ".join(map(repr, names)) or "none"}'
                )
        cells = _split_cells(row, self.separator)
        if len(cells) != len(names):
            raise BadRow(
                'the number of cells differs from the header', f'{len(cells)}, not {len(names)}'
            )
        found = dict(zip(names, cells, strict=True))
        negatives = [name for name in self.negatives if found[name].strip()]
        for name in (self.x, self.y, *negatives):
            decode_text_field(name, found[name], self.max_chars)
        return found

    def get_negatives(self, row: dict) -> tuple[str, ...]:
        """Returns the hard negatives of a parsed row."""
        return tuple(row[name] for name in self.negatives if row[name].strip())


class CsvSource(RowSource):
    """The valid rows of CSV files."""

    kind = 'csv'
    suffixes = ('.csv', '.tsv', '.csv.gz', '.tsv.gz')

    def __init__(
        self,
        path: str,
        split: str,
        x: str = 'sent0',
        y: str = 'sent1',
        negatives: str | Sequence[str] = 'hard_neg',
        id: str = 'id',
        group: str | Sequence[str] = (),
        separator: str = ',',
        holdout: float = 0.0,
        max_bad_share: float = 0.001,
        max_chars: int = 100_000,
        equal_texts: str = LATEST_RULE,
        verify: bool = False,
    ):
        """Indexes the files, or reads the index from the cache.

        Args:
          path: a file, a folder (searched recursively for *.csv and *.tsv, also with .gz) or a
            pattern.
          split: 'train', 'heldout' or 'all'.
          x, y: names of the columns with the texts.
          negatives: name or names of columns with hard negatives; '' for none. Cells may be empty.
          id: name of the column with ids; the column is optional.
          group, holdout, max_bad_share, max_chars, equal_texts, verify: see JsonlSource.
          separator: character between cells, such as a comma or a tab.

        Raises:
          UserError: no file or row is found, an argument is invalid, or too many rows are bad.
        """
        columns = Columns(
            x, y, to_field_names(negatives), id, to_field_names(group), max_chars, separator
        )
        if len(separator) != 1:
            raise UserError(
                f'separator={separator!r}: must be a single character, such as a comma or a tab'
            )
        super().__init__(path, split, columns, holdout, max_bad_share, equal_texts, verify=verify)


def _read_raw_rows(file: BinaryIO, separator: str) -> Iterator[tuple[int, int, bytes]]:
    """Yields (first line, offset, bytes) of each row that is not blank, including the header.

    Rows that cannot be parsed are included too.
    """
    consumed: list[bytes] = []  # lines that the reader has read for the current row

    def iterate_lines() -> Iterator[str]:
        for line in file:
            consumed.append(line)
            yield line.decode('utf-8', 'surrogateescape')

    reader = csv.reader(iterate_lines(), delimiter=separator)
    line_number = 1
    offset = 0
    while True:
        try:
            next(reader)
        except StopIteration:
            return
        except csv.Error:  # `parse` reports it
            pass
        row = b''.join(consumed)
        if row.strip():
            yield line_number, offset, row
        line_number += len(consumed)
        offset += len(row)
        consumed.clear()


@functools.lru_cache(64)
def _read_column_names(path: Path, modified: int, separator: str) -> tuple[str, ...]:
    """Returns the column names of a file.

    Args:
      path: path of the file.
      modified: modification time of the file, part of the cache key.
      separator: character between cells.
    """
    del modified
    return tuple(_split_cells(_read_first_row(path, separator), separator))


def _read_first_row(path: Path, separator: str) -> bytes:
    with path.open('rb') as file:
        _, _, row = next(_read_raw_rows(file, separator), (1, 0, b''))
    return row.removeprefix(BOM)


def _split_cells(row: bytes, separator: str) -> list[str]:
    try:
        return next(csv.reader([row.decode('utf-8')], delimiter=separator, strict=True), [])
    except UnicodeDecodeError as error:
        raise BadRow('not UTF-8', str(error)) from None
    except csv.Error as error:
        raise BadRow('not CSV', str(error)) from None
