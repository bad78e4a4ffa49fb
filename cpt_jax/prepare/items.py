"""The items of a task: documents, or pairs where a document holds unrelated ones.

The first stage judges every item, and the last one reads the files again and writes the items that
are kept. Both iterate over a task in the same order.
"""

from collections.abc import Iterator
from typing import NamedTuple

from cpt_jax.prepare.document import Document, Dropped, TextPair, Unreadable
from cpt_jax.prepare.plan import ShardTask, SourceRules
from cpt_jax.prepare.records import JOINT, BadRecord


class Item(NamedTuple):
    """A document, or one of its pairs.

    Attributes:
      document: the document.
      pair: the pair; None if the item is the whole document.
      text: the text that is filtered, and by which duplicates are found.
    """

    document: Document
    pair: TextPair | None
    text: str


def iterate_items(rules: SourceRules, task: ShardTask) -> Iterator[Item | Unreadable | Dropped]:
    """Yields the items of a task's files in order, and what is no item.

    Args:
      rules: how the files of its source are read.
      task: the task.
    """
    for file in task.files:
        for document in rules.read(file):
            if isinstance(document, (Unreadable, Dropped)):
                yield document
            elif rules.unit == 'document':
                yield Item(document, None, document.text)
            else:
                yield from _iterate_pairs(rules, document)


def _iterate_pairs(rules: SourceRules, document: Document) -> Iterator[Item | Unreadable | Dropped]:
    try:
        pairs = rules.make_pairs(document)
    except BadRecord as error:
        yield Unreadable(document.identity, error.kind, error.detail)
        return
    for pair in pairs:
        if isinstance(pair, Dropped):
            yield pair
            continue
        text = pair.y if rules.unit == 'y' else pair.x + JOINT + pair.y
        yield Item(document, pair, text)
