"""Pairs, with optional hard negatives, from CSV files with a header, such as SimCSE's NLI file with
`sent0,sent1,hard_neg`.

Quotes follow RFC 4180, or are ordinary characters. The column names of sentence-transformers are
read as they are (data/known_names.py).
"""

import csv
import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from cpt_jax.data.csv_lines import QUOTINGS, CsvForm, RawRows, iterate_raw_rows, split_cells
from cpt_jax.data.equality import LATEST_RULE
from cpt_jax.data.known_names import FieldNames, find_known_names
from cpt_jax.data.problems import BadRow, decode_text_field
from cpt_jax.data.rows import (
    BOM,
    LATEST_RULES,
    ParsedRow,
    RowSource,
    check_rules,
    describe_format,
    to_field_names,
)
from cpt_jax.data.scores import parse_number
from cpt_jax.runtime.errors import UserError

csv.field_size_limit(
    1 << 30
)  # long texts are reported by the check of `max_chars`, with their line

# Names of x and y that configs have for files that name them otherwise.
DEFAULT_NAMES = {('sent0', 'sent1'), ('x', 'y')}


class Columns(NamedTuple):
    """The columns to read.

    Attributes:
      x, y: names of the columns with the texts.
      negatives: names of the columns with hard negatives; cells may be empty.
      id: name of the column with the pair's id; the column is optional.
      group: see RowFormat.
      max_chars: maximum number of characters of a text.
      separator: character between cells.
      quoting: one of QUOTINGS.
      max_row_lines: maximum number of lines of a row, because of line breaks in quoted cells.
      rules: see RowFormat.
      score: name of the column with the grade of the pair; '': it is not read.
    """

    x: str
    y: str
    negatives: tuple[str, ...]
    id: str
    group: tuple[str, ...]
    max_chars: int
    separator: str
    quoting: str = 'rfc4180'
    max_row_lines: int = 100
    rules: int = LATEST_RULES
    score: str = ''

    def __repr__(self) -> str:
        values = self._asdict()
        return describe_format('Columns', values, ('quoting', 'max_row_lines', 'rules'))

    @property
    def form(self) -> CsvForm:
        """How lines are made into rows and cells."""
        limit = self.max_row_lines if self.rules > 1 else None
        return CsvForm(self.separator, self.quoting, limit)

    def iterate_rows(self, path: Path, bar: tqdm) -> RawRows:
        """Yields (first line, offset, bytes) of each row after the header.

        A row spans several lines if a quoted cell contains line breaks.
        """
        with path.open('rb') as file:
            rows = iterate_raw_rows(file, self.form)
            next(rows, None)
            for row in rows:
                bar.update(len(row[2]))
                yield row

    def read_header(self, path: Path) -> str:
        """Returns the header of a file.

        Raises:
          UserError: it is not UTF-8, a column is named twice, or lines end in a carriage return
            alone.
        """
        header = _read_first_row(path, self.form)
        if self.rules > 1:
            _check_header(header, path, self.form)
        return header.decode('utf-8', 'surrogateescape')

    def parse(self, row: bytes, path: Path) -> ParsedRow:
        """Returns the texts and cells of a row.

        Raises:
          BadRow: the row is invalid.
        """
        header = _read_column_names(path, path.stat().st_mtime_ns, self.form)
        names = self._find_names(header)
        for name in (names.x, names.y, *names.negatives, *to_field_names(self.score)):
            if name not in header:
                raise BadRow(
                    f'no column {name!r}',
                    f'the header has {", ".join(map(repr, header)) or "none"}',
                )
        cells = split_cells(row, self.form)
        if len(cells) != len(header):
            raise BadRow(
                'the number of cells differs from the header', f'{len(cells)}, not {len(header)}'
            )
        found = dict(zip(header, cells, strict=True))
        negatives = [name for name in names.negatives if found[name].strip()]
        for name in (names.x, names.y, *negatives):
            decode_text_field(name, found[name], self.max_chars)
        return ParsedRow(
            found[names.x],
            (found[names.y],),
            tuple(found[name] for name in negatives),
            found,
            ((_parse_cell(self.score, found[self.score]),),) if self.score else (),
        )

    def _find_names(self, header: Sequence[str]) -> FieldNames:
        """Returns the names of the columns: those of another trainer if the config has default
        names and the header has neither of them.
        """
        is_open = self.rules > 1 and (self.x, self.y) in DEFAULT_NAMES
        if is_open and self.x not in header and self.y not in header:
            if known := find_known_names(header):
                return known
        return FieldNames(self.x, self.y, self.negatives)


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
        quoting: str = 'rfc4180',
        max_row_lines: int = 100,
        rules: int = LATEST_RULES,
        score: str = '',
        equal_texts: str = LATEST_RULE,
        verify: bool = False,
    ):
        """Indexes the files, or reads the index from the cache.

        Args:
          path: a file, a folder (searched recursively for *.csv and *.tsv, also with .gz) or a
            pattern.
          split: 'train', 'heldout' or 'all'.
          x, y: names of the columns with the texts. A header without the default names may have
            those of sentence-transformers.
          negatives: name or names of columns with hard negatives; '' for none. Cells may be empty.
          id: name of the column with ids; the column is optional.
          group, holdout, max_bad_share, max_chars, rules, equal_texts, verify: see JsonlSource.
          separator: character between cells, such as a comma or a tab.
          quoting: 'rfc4180', or 'none': a quotation mark is an ordinary character, and a line is a
            row, as in the TSV files of MS MARCO, Quora, MRPC and STS.
          max_row_lines: maximum number of lines of a row, because of line breaks in quoted cells.
            The first line of a longer row is a bad row, and reading goes on after it.
          score: name of the column with the grade of a pair, a number that is higher the more alike
            x and y are, for the term 'cosent'. A row without it is bad.

        Raises:
          UserError: no file or row is found, an argument is invalid, or too many rows are bad.
        """
        check_rules(rules)
        if len(separator) != 1 or separator in '"\r\n':
            raise UserError(
                f'separator={separator!r}: must be a single character, such as a comma or a tab'
            )
        if quoting not in QUOTINGS:
            raise UserError(f'quoting={quoting!r}: choose one of {", ".join(QUOTINGS)}')
        if quoting != 'rfc4180' and rules == 1:
            raise UserError(f'quoting={quoting!r}: needs rules={LATEST_RULES}')
        if max_row_lines < 1:
            raise UserError(f'max_row_lines={max_row_lines}: must be 1 or more')
        columns = Columns(
            x,
            y,
            to_field_names(negatives),
            id,
            to_field_names(group),
            max_chars,
            separator,
            quoting,
            max_row_lines,
            rules,
            score,
        )
        super().__init__(path, split, columns, holdout, max_bad_share, equal_texts, verify=verify)


def _parse_cell(name: str, cell: str) -> float:
    """Returns the number in a cell. Raises BadRow if there is none."""
    try:
        return parse_number(name, float(cell))
    except ValueError:
        raise BadRow(f'{name!r} is not a number', cell[:40]) from None


def _check_header(header: bytes, path: Path, form: CsvForm) -> None:
    """Raises UserError if a header cannot name columns."""
    try:
        header.decode()
    except UnicodeDecodeError as error:
        raise UserError(f'{path}: the header is not UTF-8 ({error}): convert the file') from None
    if b'\r' in header.rstrip(b'\r\n') and b'"' not in header:
        raise UserError(
            f'{path}: its lines end in a carriage return alone, as on old Macs: convert it with '
            f"tr '\\r' '\\n'"
        )
    try:
        names = split_cells(header, form)
    except BadRow:  # every row will be bad, with the reason
        return
    repeated = [name for name, count in Counter(names).items() if count > 1 and name.strip()]
    if repeated:
        raise UserError(
            f'{path}: the header names the column {repeated[0]!r} twice: rename or remove one'
        )


@functools.lru_cache(64)
def _read_column_names(path: Path, modified: int, form: CsvForm) -> tuple[str, ...]:
    """Returns the column names of a file.

    Args:
      path: path of the file.
      modified: modification time of the file, part of the cache key.
      form: form of the file.
    """
    del modified
    return tuple(split_cells(_read_first_row(path, form), form))


def _read_first_row(path: Path, form: CsvForm) -> bytes:
    with path.open('rb') as file:
        _, _, row = next(iterate_raw_rows(file, form), (1, 0, b''))
    return row.removeprefix(BOM)
