"""Rankings: the vectors of a model, the best k documents of each query, and the rank of the right
candidate.
"""

from typing import NamedTuple

import numpy as np

_INDEX_MASK = np.uint64(0xFFFFFFFF)
_SIGN = np.uint32(0x80000000)


class Hits(NamedTuple):
    """The best documents of each query, best first.

    Attributes:
      scores_QxK: float32; -inf marks a place that no document takes.
      documents_QxK: int64, positions of the documents.
    """

    scores_QxK: np.ndarray
    documents_QxK: np.ndarray


class TopK:
    """Keeps the k best documents of each query while scores arrive in blocks of documents.

    Of equal scores the document with the smaller position wins, whatever the blocks are. The order
    is exact because score and position share one 64-bit key: no two keys are equal, so a partial
    sort is as good as a full and stable one.
    """

    def __init__(self, queries: int, k: int):
        self._keys_QxK = np.zeros((queries, 0), np.uint64)
        self._k = k

    def add(self, scores_QxC: np.ndarray, positions_QxC: np.ndarray) -> None:
        """Takes float32 scores of C documents for each query, and which documents they are; -inf
        keeps a document out.

        Args:
          scores_QxC: in any order.
          positions_QxC: 0 to 2**32 - 2, or one row [1, C] for all queries; no query gets a document
            twice.
        """
        both_QxC = np.concatenate([self._keys_QxK, _to_keys(scores_QxC, positions_QxC)], axis=1)
        if both_QxC.shape[1] > self._k:
            both_QxC = np.partition(both_QxC, -self._k, axis=1)[:, -self._k :]
        self._keys_QxK = both_QxC

    def hits(self) -> Hits:
        """K is k, or the number of documents where there are fewer."""
        return _from_keys(np.sort(self._keys_QxK, axis=1)[:, ::-1])


def _to_keys(scores_QxC: np.ndarray, positions_QxC: np.ndarray) -> np.ndarray:
    """uint64 keys that sort as (score, smaller position): the score's bits made monotonic, then the
    position reversed.
    """
    # + 0 turns -0.0 into 0.0: they are equal scores.
    bits_QxC = (scores_QxC.astype(np.float32) + np.float32(0)).view(np.uint32)
    ordered_QxC = np.where(bits_QxC & _SIGN, ~bits_QxC, bits_QxC | _SIGN)
    return ordered_QxC.astype(np.uint64) << np.uint64(32) | (
        _INDEX_MASK - positions_QxC.astype(np.uint64)
    )


def _from_keys(keys_QxK: np.ndarray) -> Hits:
    ordered_QxK = (keys_QxK >> np.uint64(32)).astype(np.uint32)
    bits_QxK = np.where(ordered_QxK & _SIGN, ordered_QxK & ~_SIGN, ~ordered_QxK)
    return Hits(
        bits_QxK.view(np.float32), (_INDEX_MASK - (keys_QxK & _INDEX_MASK)).astype(np.int64)
    )


def ranks_of_right(scores_QxN: np.ndarray, first: int = 0) -> np.ndarray:
    """int64[Q]: the rank of candidate `first` + q for query q, from 1; candidates with an equal
    score count as better.

    CodeBERT's `mrr.py`: rank = count(score >= score of the right one), so a model that gives all
    candidates one vector gets the last rank and not the first.
    """
    right_Qx1 = np.diagonal(scores_QxN, offset=first)[:, None]
    return (scores_QxN >= right_Qx1).sum(axis=1)
