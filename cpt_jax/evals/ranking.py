"""Exact ranking: the vectors of a model, the best k documents of each query, and the rank of the right candidate."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cpt_jax.errors import UserError
from cpt_jax.evals.task import Embed

QUERIES_AT_ONCE = 256  # with DOCUMENTS_AT_ONCE: a block of scores is 16 MB, and its sort keys 32 MB
DOCUMENTS_AT_ONCE = 16_384

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


def embed_texts(embed: Embed, texts: Sequence[str], side: str) -> np.ndarray:
    """float32[n, D] from `embed`. Raises UserError for numbers that are not finite: they would rank in any order."""
    vectors_NxD = np.asarray(embed(texts, side), np.float32)
    if vectors_NxD.ndim != 2 or len(vectors_NxD) != len(texts):
        raise ValueError(f'embed gave shape {vectors_NxD.shape} for {len(texts)} texts')
    bad = np.flatnonzero(~np.isfinite(vectors_NxD).all(axis=1))
    if len(bad):
        raise UserError(f'--model gives vectors that are not finite ({len(bad)} of {len(texts)} texts): take an earlier checkpoint')
    return vectors_NxD


def embed_distinct(embed: Embed, texts: Sequence[str], side: str) -> np.ndarray:
    """The same for texts that occur again and again: each is embedded once, so that equal texts have equal vectors to the bit."""
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return embed_texts(embed, list(place), side)[[place[text] for text in texts]]


class TopK:
    """Keeps the k best documents of each query while scores arrive in blocks of documents.

    Of equal scores the document that came first wins, whatever the blocks are. The order is exact because score and position
    share one 64-bit key: no two keys are equal, so a partial sort is as good as a full and stable one.
    """

    def __init__(self, queries: int, k: int):
        self._keys_QxK = np.zeros((queries, 0), np.uint64)
        self._k = k
        self._seen = 0

    def add(self, scores_QxC: np.ndarray) -> None:
        """Takes the float32 scores of the next C documents; -inf keeps a document out."""
        keys_QxC = _to_keys(scores_QxC, self._seen)
        self._seen += scores_QxC.shape[1]
        if self._seen >= _INDEX_MASK:
            raise ValueError('more documents than a key can number (2**32 - 1)')
        both_QxC = np.concatenate([self._keys_QxK, keys_QxC], axis=1)
        if both_QxC.shape[1] > self._k:
            both_QxC = np.partition(both_QxC, -self._k, axis=1)[:, -self._k :]
        self._keys_QxK = both_QxC

    def hits(self) -> Hits:
        """K is k, or the number of documents where there are fewer."""
        return _from_keys(np.sort(self._keys_QxK, axis=1)[:, ::-1])


def _to_keys(scores_QxC: np.ndarray, first: int) -> np.ndarray:
    """uint64 keys that sort as (score, earlier position): the score's bits made monotonic, then the position reversed."""
    bits_QxC = (scores_QxC.astype(np.float32) + np.float32(0)).view(np.uint32)  # + 0 turns -0.0 into 0.0: they are equal scores
    ordered_QxC = np.where(bits_QxC & _SIGN, ~bits_QxC, bits_QxC | _SIGN)
    positions_C = np.arange(first, first + scores_QxC.shape[1], dtype=np.uint64)
    return ordered_QxC.astype(np.uint64) << np.uint64(32) | (_INDEX_MASK - positions_C)[None, :]


def _from_keys(keys_QxK: np.ndarray) -> Hits:
    ordered_QxK = (keys_QxK >> np.uint64(32)).astype(np.uint32)
    bits_QxK = np.where(ordered_QxK & _SIGN, ordered_QxK & ~_SIGN, ~ordered_QxK)
    return Hits(bits_QxK.view(np.float32), (_INDEX_MASK - (keys_QxK & _INDEX_MASK)).astype(np.int64))


def search(queries_QxD: np.ndarray, blocks: Iterable[np.ndarray], k: int) -> Hits:
    """The k documents with the largest dot products, in float32; every document is scored.

    Args:
      queries_QxD: float32.
      blocks: float32 [C, D] each: the documents, in order. Memory grows with one block and with Q x k, not with their number.
      k: how many to keep a query; may be more than there are.
    """
    parts = _pieces(len(queries_QxD), QUERIES_AT_ONCE)
    best = [TopK(part.stop - part.start, k) for part in parts]
    for block_CxD in blocks:
        for piece in _pieces(len(block_CxD), DOCUMENTS_AT_ONCE):
            for part, top in zip(parts, best, strict=True):
                top.add(queries_QxD[part] @ block_CxD[piece].T)
    found = [top.hits() for top in best]
    return Hits(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))


def embedded_blocks(embed: Embed, documents: Sequence[str]) -> Iterator[np.ndarray]:
    """The vectors of `documents`, float32[C, D] at a time."""
    for piece in _pieces(len(documents), DOCUMENTS_AT_ONCE):
        yield embed_texts(embed, documents[piece], 'y')


def _pieces(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def ranks_of_right(scores_QxN: np.ndarray) -> np.ndarray:
    """int64[Q]: the rank of candidate q for query q, from 1; candidates with an equal score count as better.

    CodeBERT's `mrr.py`: rank = count(score >= score of the right one), so a model that gives all candidates one vector gets
    the last rank and not the first.
    """
    right_Qx1 = np.diagonal(scores_QxN)[:, None]
    return (scores_QxN >= right_Qx1).sum(axis=1)
