"""What a source says about its valid rows: rows that span many lines, and few distinct answers."""

from array import array

import numpy as np

# Fraction of the other pairs of a batch with an equal y, above which a source warns.
MAX_EQUAL_SHARE = 0.02
# Sources with fewer pairs than this are examples, and give no warning.
MIN_PAIRS_TO_WARN = 32


def count_lines(row: bytes) -> int:
    """Returns the number of lines of a row."""
    return row.rstrip(b'\r\n').count(b'\n') + 1


class LongestRow:
    """The number of rows that span several lines, and the longest of them."""

    def __init__(self) -> None:
        self._rows = 0
        self._lines = 1
        self._where = ''

    def add(self, lines: int, where: str) -> None:
        """Counts a valid row that spans several lines.

        Args:
          lines: number of lines of the row, at least 2.
          where: 'file:line' of the row.
        """
        self._rows += 1
        if lines > self._lines:
            self._lines = lines
            self._where = where

    def summary(self) -> str:
        """Returns a phrase with the counts; '' if every row is a line."""
        if not self._rows:
            return ''
        return (
            f'{self._rows:,} rows span several lines (longest: {self._lines} lines at '
            f'{self._where})'
        )


class AnswerCounts:
    """Counts how often each y occurs, in 8 bytes per pair."""

    def __init__(self) -> None:
        self._ids = array('q')

    def add(self, y: str) -> None:
        """Counts the y of a pair."""
        self._ids.append(hash(y.strip()))

    def summary(self) -> str:
        """Returns a warning if few y are distinct; '' otherwise."""
        pairs = len(self._ids)
        if pairs < MIN_PAIRS_TO_WARN:
            return ''
        _, counts_K = np.unique(np.frombuffer(self._ids, np.int64), return_counts=True)
        equal_share = (counts_K * (counts_K - 1)).sum() / (pairs * (pairs - 1))
        if equal_share <= MAX_EQUAL_SHARE:
            return ''
        return (
            f'WARNING: only {len(counts_K):,} distinct y among {pairs:,} pairs: '
            f'{equal_share:.0%} of the other pairs of a batch have the same y and are no negatives'
        )
