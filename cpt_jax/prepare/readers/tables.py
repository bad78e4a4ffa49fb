"""Documents of CSV and TSV files, such as SimCSE's NLI triples."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from cpt_jax.data.csv_lines import QUOTINGS, CsvForm, iterate_raw_rows, split_cells
from cpt_jax.data.rows import BOM
from cpt_jax.prepare.document import Document, Unreadable
from cpt_jax.prepare.readers.compressed import BrokenFile, open_input
from cpt_jax.prepare.records import BadRecord, make_document
from cpt_jax.runtime.errors import UserError

SUFFIXES = ('.csv', '.tsv')
_MAX_ROW_LINES = 100


def read_table(
    path: Path,
    name: str,
    text: str | Sequence[str] = 'text',
    id: str = 'id',
    separator: str = ',',
    quoting: str = 'rfc4180',
    columns: Sequence[str] = (),
) -> Iterator[Document | Unreadable]:
    """Yields a document for each row.

    Args:
      path: the file.
      name: its name in the source.
      text: column with the text, or several that are joined by a blank line.
      id: column with a name for the document, which is optional.
      separator: character between cells.
      quoting: 'rfc4180', or 'none': a quotation mark is an ordinary character.
      columns: names of the columns of a file without a header; (): the first row has them.
    """
    names = (text,) if isinstance(text, str) else tuple(text)
    form = CsvForm(separator, quoting, _MAX_ROW_LINES)
    header = list(columns)
    try:
        with open_input(path) as file:
            for line, _, raw in iterate_raw_rows(file, form):
                where = f'{name}:{line}'
                try:
                    cells = split_cells(raw.removeprefix(BOM) if line == 1 else raw, form)
                    if not header:
                        header = list(cells)
                        continue
                    if len(cells) != len(header):
                        counts = f'{len(cells)}, not {len(header)}'
                        raise BadRecord('the number of cells differs from the header', counts)
                    row = dict(zip(header, cells, strict=True))
                    yield make_document(row, names, id, where)
                except BadRecord as error:
                    yield Unreadable(where, error.kind, error.detail)
    except BrokenFile as error:
        yield Unreadable(name, error.kind, error.detail, ends_file=True)


def check_table_reader(separator: str = ',', quoting: str = 'rfc4180', **others: object) -> None:
    """Raises UserError if the arguments of `read_table` are invalid."""
    del others
    if len(separator) != 1 or separator in '"\r\n':
        raise UserError(f'separator={separator!r}: must be a single character, such as a comma')
    if quoting not in QUOTINGS:
        raise UserError(f'quoting={quoting!r}: choose one of {", ".join(QUOTINGS)}')
