"""Rankings: the best k documents of each query, and the rank of the right candidate."""

from typing import NamedTuple

import numpy as np

_INDEX_MASK = np.uint64(0xFFFFFFFF)
_SIGN = np.uint32(0x80000000)


class Hits(NamedTuple):
    """The best documents of each query, best first.

    Attributes:
      scores_Qxk: float32; -inf marks entries without a document.
      documents_Qxk: int64, positions of the documents.
    """

    scores_Qxk: np.ndarray
    documents_Qxk: np.ndarray


class TopK:
    """Keeps the k best documents of each query while scores arrive in blocks of documents.

    Ties are broken by position: the smaller one wins, however documents are split into blocks.
    Score and position form one 64-bit key. No two keys are equal, so a partial sort gives the same
    result as a stable full sort.
    """

    def __init__(self, queries: int, k: int):
        self._keys_Qxk = np.zeros((queries, 0), np.uint64)
        self._k = k

    def add(self, scores_QxC: np.ndarray, positions_QxC: np.ndarray) -> None:
        """Adds the scores of C documents for each query; -inf leaves a document out.

        Args:
          scores_QxC: float32, in any order.
          positions_QxC: int, positions of the documents, 0 to 2**32 - 2; or one row [1, C] for all
            queries. No document may occur twice for a query.
        """
        both_QxC = np.concatenate([self._keys_Qxk, _to_keys(scores_QxC, positions_QxC)], axis=1)
        if both_QxC.shape[1] > self._k:
            both_QxC = np.partition(both_QxC, -self._k, axis=1)[:, -self._k :]
        self._keys_Qxk = both_QxC

    def get_hits(self) -> Hits:
        """Returns the best documents; K is k, or the number of documents if that is smaller."""
        return _from_keys(np.sort(self._keys_Qxk, axis=1)[:, ::-1])


def _to_keys(scores_QxC: np.ndarray, positions_QxC: np.ndarray) -> np.ndarray:
    """Returns uint64 keys that sort by score, and then by smaller position.

    The high 32 bits are the score's bits, changed so that they sort as unsigned integers:

      bits   63 ... 32              31 ... 0
             float32 score, sorted  0xFFFFFFFF - position
    """
    # Adding 0 turns -0.0 into 0.0, because both are equal scores.
    bits_QxC = (scores_QxC.astype(np.float32) + np.float32(0)).view(np.uint32)
    ordered_QxC = np.where(bits_QxC & _SIGN, ~bits_QxC, bits_QxC | _SIGN)
    high_QxC = ordered_QxC.astype(np.uint64) << np.uint64(32)
    return high_QxC | (_INDEX_MASK - positions_QxC.astype(np.uint64))


def _from_keys(keys_Qxk: np.ndarray) -> Hits:
    """Inverts `_to_keys`."""
    ordered_Qxk = (keys_Qxk >> np.uint64(32)).astype(np.uint32)
    bits_Qxk = np.where(ordered_Qxk & _SIGN, ordered_Qxk & ~_SIGN, ~ordered_Qxk)
    positions_Qxk = _INDEX_MASK - (keys_Qxk & _INDEX_MASK)
    return Hits(bits_Qxk.view(np.float32), positions_Qxk.astype(np.int64))


def rank_right_candidates(scores_QxN: np.ndarray, first: int = 0) -> np.ndarray:
    """Returns the rank, from 1, of candidate `first` + q for each query q, int64 [Q].

    Candidates with an equal score count as better, as in CodeBERT's `mrr.py`: rank = count(score >=
    score of the right one). So a model that embeds all candidates alike gets the last rank, not the
    first.
    """
    right_Qx1 = np.diagonal(scores_QxN, offset=first)[:, None]
    return (scores_QxN >= right_Qx1).sum(axis=1)
