"""Documents of Parquet files: one row each, read in groups of rows."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cpt_jax.prepare.document import Document, Unreadable
from cpt_jax.prepare.records import BadRecord, make_document

SUFFIXES = ('.parquet',)
_ROWS_AT_ONCE = 1024


def read_parquet_file(
    path: Path, name: str, text: str | Sequence[str] = 'text', id: str = 'id'
) -> Iterator[Document | Unreadable]:
    """Yields a document for each row.

    Args:
      path: the file.
      name: its name in the source.
      text: column with the text, or several that are joined by a blank line. 'a/b' is field `b` of
        column `a`.
      id: column with a name for the document, which is optional.
    """
    import pyarrow
    from pyarrow import parquet

    names = (text,) if isinstance(text, str) else tuple(text)
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE):
                for row in _iterate_rows(batch):
                    number += 1
                    where = f'{name}:{number}'
                    try:
                        if isinstance(row, UnicodeDecodeError):
                            raise BadRecord('not UTF-8', str(row))
                        yield make_document(row, names, id, where)
                    except BadRecord as error:
                        yield Unreadable(where, error.kind, error.detail)
    except (pyarrow.ArrowException, OSError) as error:
        detail = ' '.join(str(error).split())
        yield Unreadable(f'{name}:{number + 1}', 'broken Parquet file', detail, ends_file=True)


def _iterate_rows(batch: Any) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    """Yields the rows of a batch; an error for a row whose text is not UTF-8."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # before the first row
        for i in range(len(batch)):
            try:
                yield from batch.slice(i, 1).to_pylist()
            except UnicodeDecodeError as error:
                yield error
