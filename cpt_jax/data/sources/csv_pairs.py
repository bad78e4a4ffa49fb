"""Pairs and triples from CSV files with a header, such as SimCSE's `sent0,sent1,hard_neg` of NLI;
quoted as in RFC 4180.
"""

import csv
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tqdm import tqdm

from cpt_jax.data.problems import BadRow, check_text
from cpt_jax.data.rows import BOM, RowSource, group_names
from cpt_jax.runtime.errors import UserError

csv.field_size_limit(1 << 30)  # a text that is too long is told with its line, by max_chars


class Columns(NamedTuple):
    """Which columns are read, and what separates them. A cell without a negative may be empty; ''
    is never read.
    """

    x: str
    y: str
    negatives: tuple[str, ...]
    id: str
    group: tuple[str, ...]
    max_chars: int
    separator: str

    def rows(self, path: Path, bar: tqdm) -> Iterator[tuple[int, int, bytes]]:
        """(line, offset, bytes) of each row behind the header; a row goes over several lines where
        a quoted cell does.
        """
        with path.open('rb') as file:
            rows = _raw_rows(file, self.separator)
            next(rows, None)
            for row in rows:
                bar.update(len(row[2]))
                yield row

    def head(self, path: Path) -> str:
        """The header."""
        return _first_row(path, self.separator).decode('utf-8', 'surrogateescape')

    def parse(self, row: bytes, path: Path) -> dict:
        """The row's cells by the names in the header, with x, y and negatives found good. Raises
        BadRow.
        """
        names = _header(path, path.stat().st_mtime_ns, self.separator)
        for name in (self.x, self.y, *self.negatives):
            if name not in names:
                raise BadRow(
                    f'no column {name!r}', f'the header has {", ".join(map(repr, names)) or "none"}'
                )
        cells = _cells(row, self.separator)
        if len(cells) != len(names):
            raise BadRow(
                'not as many cells as the header has', f'{len(cells)} instead of {len(names)}'
            )
        found = dict(zip(names, cells, strict=True))
        for name in (self.x, self.y, *(name for name in self.negatives if found[name].strip())):
            check_text(name, found[name], self.max_chars)
        return found

    def negatives_of(self, row: dict) -> tuple[str, ...]:
        return tuple(row[name] for name in self.negatives if row[name].strip())


class CsvSource(RowSource):
    """The good rows of CSV files."""

    kind, suffixes = 'csv', ('.csv', '.tsv', '.csv.gz', '.tsv.gz')

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
    ):
        """Indexes the files, or reads the index that an earlier call left.

        Args:
          path: a file, a folder (*.csv and *.tsv in it and below, also with .gz) or a pattern.
          split: 'train', 'heldout' or 'all'.
          x, y, id: names of columns; a column `id` need not be there.
          negatives: a column with a hard negative, several, or ''; an empty cell holds none.
          group, holdout, max_bad_share, max_chars: as of JsonlSource.
          separator: of cells: a comma, or a tab or another single character.
        """
        columns = Columns(
            x, y, group_names(negatives), id, group_names(group), max_chars, separator
        )
        if len(separator) != 1:
            raise UserError(
                f'separator={separator!r}: a single character is expected, such as a comma or a tab'
            )
        super().__init__(path, split, columns, holdout, max_bad_share)


def _raw_rows(file: BinaryIO, separator: str) -> Iterator[tuple[int, int, bytes]]:
    """(first line, offset, bytes) of each row that is not blank, the header among them, whether or
    not it can be read.
    """
    taken: list[bytes] = []

    def lines() -> Iterator[str]:
        for line in file:
            taken.append(line)
            yield line.decode('utf-8', 'surrogateescape')

    number, offset, reader = 1, 0, csv.reader(lines(), delimiter=separator)
    while True:
        try:
            next(reader)
        except StopIteration:
            return
        except csv.Error:  # `parse` tells
            pass
        row = b''.join(taken)
        if row.strip():
            yield number, offset, row
        number, offset = number + len(taken), offset + len(row)
        taken.clear()


@functools.lru_cache(64)
def _header(path: Path, changed: int, separator: str) -> tuple[str, ...]:
    """The names of a file's columns; `changed` is when it did."""
    del changed
    return tuple(_cells(_first_row(path, separator), separator))


def _first_row(path: Path, separator: str) -> bytes:
    with path.open('rb') as file:
        return next(_raw_rows(file, separator), (1, 0, b''))[2].removeprefix(BOM)


def _cells(row: bytes, separator: str) -> list[str]:
    try:
        return next(csv.reader([row.decode('utf-8')], delimiter=separator, strict=True), [])
    except UnicodeDecodeError as error:
        raise BadRow('not UTF-8', str(error)) from None
    except csv.Error as error:
        raise BadRow('not CSV', str(error)) from None
