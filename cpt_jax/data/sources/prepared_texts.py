"""The texts of a data set of launch/prepare.py, for language models."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NEIGHBOURS = 'neighbours'  # name of a pair rule of launch/prepare.py


class _Part(NamedTuple):
    """Consecutive pairs of one rule.

    Attributes:
      first_text, first_pair: indices of the first text and the first pair.
      starts_D: int64, first pair of each document, and the end; None if pairs are joined.
      text_starts_D: int64, first text of each document, and the end.
    """

    first_text: int
    first_pair: int
    starts_D: np.ndarray | None = None
    text_starts_D: np.ndarray | None = None


class PreparedTexts:
    """Which field of which pair each text is.

    Of neighbouring pieces of a document, the texts are x of each pair and y of the last one: each
    piece is read once. Of other pairs, x and y are joined.
    """

    def __init__(self, rules: Sequence[tuple[str, int]], documents: np.ndarray):
        """Divides the pairs into texts.

        Args:
          rules: pair rule and number of pairs of each source, in the order of the pairs.
          documents: int64, see Source.
        """
        self._parts: list[_Part] = []
        first_text = 0
        first_pair = 0
        for rule, pairs in rules:
            part = _Part(first_text, first_pair)
            first_text += pairs
            if rule == NEIGHBOURS:
                low, high = np.searchsorted(documents, [first_pair, first_pair + pairs]).tolist()
                starts_D = np.array(documents[low : high + 1])
                # Each document has one text more than it has pairs.
                shifts_D = np.arange(len(starts_D)) + part.first_text - first_pair
                part = part._replace(starts_D=starts_D, text_starts_D=starts_D + shifts_D)
                first_text += high - low
            self._parts.append(part)
            first_pair += pairs
        self._size = first_text

    def __len__(self) -> int:
        return self._size

    def locate(self, index: int) -> tuple[int, str]:
        """Returns the index of a pair, and 'x', 'y' or 'both': its field, or that they are joined.

        Args:
          index: index of a text.
        """
        number = bisect_right(self._parts, index, key=lambda part: part.first_text) - 1
        part = self._parts[number]
        if part.starts_D is None or part.text_starts_D is None:
            return part.first_pair + index - part.first_text, 'both'
        document = int(np.searchsorted(part.text_starts_D, index, 'right')) - 1
        start, end = part.starts_D[document : document + 2].tolist()
        pair = start + index - int(part.text_starts_D[document])
        return (pair, 'x') if pair < end else (end - 1, 'y')
