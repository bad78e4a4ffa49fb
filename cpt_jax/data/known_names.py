"""Names of the fields of pairs in the files of other trainers, which are read as they are."""

import re
from collections.abc import Collection
from typing import NamedTuple


class FieldNames(NamedTuple):
    """The fields of a row with its texts.

    Attributes:
      x, y: names of the fields with x and y.
      negatives: names of the fields with hard negatives.
    """

    x: str
    y: str
    negatives: tuple[str, ...]


def find_known_names(names: Collection[str]) -> FieldNames | None:
    """Returns the fields of a row in the form of another trainer; None if it has no such form.

    The forms are those of FlagEmbedding (query, pos, neg: the last two are lists) and of
    sentence-transformers (anchor, positive, and optionally negative or negative_1, negative_2,
    ...).

    Args:
      names: names of the row's fields.
    """
    if 'query' in names and 'pos' in names:
        return FieldNames('query', 'pos', tuple(name for name in ('neg',) if name in names))
    if 'anchor' in names and 'positive' in names:
        numbers = {
            name: int(match[1] or 0)
            for name in names
            if (match := re.fullmatch(r'negative(?:_(\d+))?', name))
        }
        return FieldNames('anchor', 'positive', tuple(sorted(numbers, key=numbers.__getitem__)))
    return None
