"""Documents from records with named fields: JSON objects, rows of tables, examples of tfds."""

from collections.abc import Mapping, Sequence
from typing import Any

from cpt_jax.data.problems import BadRow as BadRecord
from cpt_jax.prepare.document import Document

__all__ = ['BadRecord', 'get_field', 'make_document']

# Between the fields that make a text.
JOINT = '\n\n'


def get_field(record: Mapping[str, Any], name: str) -> Any:
    """Returns a field; 'a/b' is field `b` of field `a`.

    Raises:
      BadRecord: the record has no such field.
    """
    value: Any = record
    for part in name.split('/'):
        if not isinstance(value, Mapping) or part not in value:
            known = ', '.join(map(repr, record)) or 'none'
            raise BadRecord(f'no field {name!r}', f'it has {known}')
        value = value[part]
    return value


def get_text(record: Mapping[str, Any], name: str) -> str:
    """Returns a text field; bytes are decoded.

    Raises:
      BadRecord: there is no such field, or it is not text.
    """
    value = get_field(record, name)
    try:
        text = value.decode('utf-8') if isinstance(value, bytes) else value
        if isinstance(text, str):
            text.encode()
            return text
    except UnicodeDecodeError as error:
        raise BadRecord(f'{name!r} is not UTF-8', str(error)) from None
    except UnicodeEncodeError:
        raise BadRecord(f'{name!r} contains a lone surrogate') from None
    raise BadRecord(f'{name!r} is not text')


def make_document(record: Mapping[str, Any], text: Sequence[str], id: str, where: str) -> Document:
    """Returns the document of a record.

    Args:
      record: values by field name.
      text: names of the fields that make its text.
      id: name of the optional field with a name for the document.
      where: place of the record, which is part of the document's identity.

    Raises:
      BadRecord: a field is missing or not text.
    """
    parts = [get_text(record, name) for name in text]
    own = record.get(id)
    identity = where if own in (None, '') else f'{where} {own}'
    return Document(JOINT.join(parts), identity, record)
