"""Rows and cells of CSV files: which lines belong to a row, and how a row is split."""

import csv
from collections import deque
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from cpt_jax.data.problems import BadRow

QUOTINGS = ('rfc4180', 'none')
# (first line, offset, bytes) of each row.
RawRows = Iterator[tuple[int, int, bytes]]


class CsvForm(NamedTuple):
    """How the lines of a file are made into rows and cells.

    Attributes:
      separator: character between cells.
      quoting: 'rfc4180' or 'none', in which a quotation mark is an ordinary character.
      max_lines: maximum number of lines of a row; None: no limit, so that a quotation mark without
        its counterpart extends a row to the end of the file.
    """

    separator: str
    quoting: str
    max_lines: int | None


def iterate_raw_rows(file: BinaryIO, form: CsvForm) -> RawRows:
    """Yields (first line, offset, bytes) of each row that is not blank, including the header.

    Rows that cannot be parsed are included too. If the row that begins with a line is longer than
    the limit, or does not end, that line alone is a row.
    """
    lines: deque[bytes] = deque()  # lines that were read but not yet yielded

    def peek(index: int) -> bytes:
        while len(lines) <= index:
            line = file.readline()
            if not line:
                return b''
            lines.append(line)
        return lines[index]

    line_number = 1
    offset = 0
    while first := peek(0):
        is_line = form.quoting == 'none' or b'"' not in first
        count = 1 if is_line else _count_lines_of_row(peek, form)
        row = lines.popleft() if count == 1 else b''.join(lines.popleft() for _ in range(count))
        if row.strip():
            yield line_number, offset, row
        line_number += count
        offset += len(row)


def _count_lines_of_row(peek: Callable[[int], bytes], form: CsvForm) -> int:
    """Returns the number of lines of a row with quotation marks.

    Args:
      peek: returns the line at an index, counted from the first line of the row; b'' at the end of
        the file.
      form: form of the file.
    """
    count = 0
    has_end = True

    def iterate_lines() -> Iterator[str]:
        nonlocal count, has_end
        while (form.max_lines is None or count < form.max_lines) and (line := peek(count)):
            count += 1
            yield line.decode('utf-8', 'surrogateescape')
        has_end = False  # the reader needs a line more than there are

    try:
        next(csv.reader(iterate_lines(), delimiter=form.separator))
    except csv.Error:  # `split_cells` reports it
        pass
    return count if has_end or form.max_lines is None else 1


def split_cells(row: bytes, form: CsvForm) -> list[str]:
    """Returns the cells of a row.

    Raises:
      BadRow: the row is not valid.
    """
    try:
        text = row.decode('utf-8')
    except UnicodeDecodeError as error:
        raise BadRow('not UTF-8', str(error)) from None
    if form.quoting == 'none':
        return text.rstrip('\r\n').split(form.separator)
    try:
        return next(csv.reader([text], delimiter=form.separator, strict=True), [])
    except csv.Error as error:
        if form.max_lines and 'unexpected end of data' in str(error):
            raise BadRow(
                f'a quotation mark without its counterpart within {form.max_lines} lines',
                "if quotation marks are ordinary characters in this file, set quoting='none'; if "
                'cells have more lines, raise max_row_lines',
            ) from None
        raise BadRow('not CSV', str(error)) from None
