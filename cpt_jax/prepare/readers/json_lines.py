"""Documents of JSON lines: one object per line, with configurable field names."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cpt_jax.prepare.document import Document, Unreadable
from cpt_jax.prepare.readers.compressed import BrokenFile, iterate_lines, open_input
from cpt_jax.prepare.records import BadRecord, make_document

SUFFIXES = ('.jsonl', '.ndjson', '.json')


def read_json_documents(
    path: Path,
    name: str,
    text: str | Sequence[str] = 'text',
    id: str = 'id',
    max_document_mb: float = 100.0,
) -> Iterator[Document | Unreadable]:
    """Yields a document for each line.

    Args:
      path: the file.
      name: its name in the source.
      text: field with the text, or several fields that are joined by a blank line. 'a/b' is field
        `b` of field `a`.
      id: field with a name for the document, which is optional.
      max_document_mb: maximum megabytes of a line.
    """
    names = (text,) if isinstance(text, str) else tuple(text)
    limit = int(max_document_mb * 1e6)
    try:
        with open_input(path) as file:
            for number, line in enumerate(iterate_lines(file, limit), 1):
                where = f'{name}:{number}'
                if not line.strip():
                    continue
                try:
                    if len(line) > limit:
                        raise BadRecord(f'longer than {max_document_mb:g} MB')
                    yield make_document(_parse_line(line), names, id, where)
                except BadRecord as error:
                    yield Unreadable(where, error.kind, error.detail)
    except BrokenFile as error:
        yield Unreadable(name, error.kind, error.detail, ends_file=True)


def _parse_line(line: bytes) -> Mapping[str, Any]:
    try:
        row = json.loads(line.decode('utf-8-sig'))
    except UnicodeDecodeError as error:
        raise BadRecord('not UTF-8', str(error)) from None
    except (ValueError, RecursionError) as error:
        raise BadRecord('not JSON', str(error)) from None
    if not isinstance(row, dict):
        raise BadRecord('not a JSON object')
    return row
