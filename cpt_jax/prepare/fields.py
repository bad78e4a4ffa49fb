"""Pair rules: two fields of a record, such as title and body, question and answer; and those of
CodeSearchNet's files.
"""

from collections.abc import Iterator

from cpt_jax.data.filters import extract_first_paragraph
from cpt_jax.data.python_functions import remove_docstring
from cpt_jax.prepare.document import Document, Dropped, TextPair
from cpt_jax.prepare.records import BadRecord, get_field, get_text


def pair_fields(
    document: Document, x: str = 'x', y: str = 'y', negatives: str = 'negatives'
) -> Iterator[TextPair | Dropped]:
    """Yields a pair for each text of field `y`.

    Args:
      document: a document of a record.
      x: field with the first text.
      y: field with the second text, or a list of such texts.
      negatives: field with a hard negative or a list of them, which is optional; '' for none.

    Raises:
      BadRecord: a field is missing or not text.
    """
    record = document.fields
    first = get_text(record, x)
    value = get_field(record, y)
    hard = record.get(negatives) if negatives else None
    if hard is None:
        hard = ()
    elif isinstance(hard, str):
        hard = (hard,)
    if not isinstance(hard, (list, tuple)) or not all(isinstance(text, str) for text in hard):
        raise BadRecord(f'{negatives!r} is not a list of texts')
    extra = {**record, 'negatives': tuple(filter(str.strip, hard))}
    if not isinstance(value, list):
        value = [get_text(record, y)]
    if not value:
        yield Dropped(f'no text in {y}')
    for text in value:
        if not isinstance(text, str):
            raise BadRecord(f'{y!r} is not text')
        if first.strip() and text.strip():
            yield TextPair(first, text, extra)
        else:
            yield Dropped(f'blank {x} or {y}')


def pair_code_search_net(
    document: Document, x: str = 'docstring', y: str = 'code', repository: str = 'repo'
) -> Iterator[TextPair | Dropped]:
    """Yields (first paragraph of the documentation, function) of a row of CodeSearchNet's files.

    Functions of a repository are held out together. The docstring is removed from Python code.

    Args:
      document: a document of a record.
      x: field with the documentation.
      y: field with the code.
      repository: field with the name of the repository.

    Raises:
      BadRecord: a field is missing or not text.
    """
    record = document.fields
    documentation = extract_first_paragraph(get_text(record, x))
    code = get_text(record, y)
    if str(record.get('language', 'python')).lower() == 'python':
        code = remove_docstring(code)
    group = record.get(repository) or document.identity
    if documentation.strip() and code.strip():
        yield TextPair(documentation, code, {**record, 'group': group})
    else:
        yield Dropped(f'blank {x} or {y}')
