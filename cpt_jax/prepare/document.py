"""What the steps of data preparation pass on: documents and pairs of texts.

A *reader* is a plain function from a file to its documents, `read(path, ...) ->
Iterator[Document | Unreadable | Dropped]`. A *pair rule* is a plain function from a document to its
pairs, `make_pairs(document, ...) -> Iterable[TextPair | Dropped]`. `cpt_jax/prepare/registry.py`
names them for configs.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """A text of a corpus.

    Attributes:
      text: the text; '' for a document that consists of fields only.
      identity: unique name inside its source, such as 'folder/file.txt' or 'file.jsonl:17' (line
        from 1); the pairs' ids begin with it.
      fields: values for pair rules and for the output, such as 'path', 'language', 'license' and
        'group'. Documents with an equal 'group' (a repository, a package) are held out together.
    """

    text: str
    identity: str
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Unreadable(NamedTuple):
    """A file or record that a reader cannot read; it is counted, and the run goes on.

    Attributes:
      where: 'file', 'file:line' or 'file, record 17'.
      kind: short name of the problem, which problems are counted by, such as 'not UTF-8'.
      detail: message of the library.
      ends_file: whether the rest of the file cannot be read either.
    """

    where: str
    kind: str
    detail: str = ''
    ends_file: bool = False


class Dropped(NamedTuple):
    """Parts of a document that make no pair; they are counted.

    Attributes:
      reason: why, in a few words, by which they are counted.
      number: how many.
    """

    reason: str
    number: int = 1


class TextPair(NamedTuple):
    """Two texts that belong together.

    Attributes:
      x, y: the texts.
      fields: values to store with the pair: those of its document, and those that its rule adds,
        such as 'license' and 'negatives' (a sequence of texts).
    """

    x: str
    y: str
    fields: Mapping[str, Any] = {}

    @property
    def negatives(self) -> tuple[str, ...]:
        """The hard negatives in `fields`; () if the field has something else than texts."""
        found = self.fields.get('negatives')
        if isinstance(found, str):
            return (found,)
        if not isinstance(found, (list, tuple)):
            return ()
        return tuple(text for text in found if isinstance(text, str))
