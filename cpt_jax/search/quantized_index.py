"""Indexes of int8 and binary vectors, to measure how much quality and time they cost or save."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from cpt_jax.search.hamming import HammingIndex
from cpt_jax.search.ranking import Hits, TopK
from cpt_jax.storage.vector_codes import compute_ranges, dequantize, pack_signs, quantize

Blocks = Iterable[tuple[np.ndarray, np.ndarray]]
# (queries, blocks, k) -> hits, with float32 vectors.
SearchExactly = Callable[[np.ndarray, Blocks, int], Hits]


class Int8Index:
    """int8 codes of all documents, compared with float32 queries.

    The ranges of the dimensions are those of the first block, at most 16,384 documents.

    Attributes:
      settings: settings that the results depend on; complete after `add_blocks`.
    """

    def __init__(self, search_exactly: SearchExactly):
        """Creates an empty index.

        Args:
          search_exactly: search of float32 vectors.
        """
        self._search_exactly = search_exactly
        self._blocks: list[tuple[np.ndarray, np.ndarray]] = []
        self._ranges_2xD: np.ndarray | None = None
        self.settings: dict[str, object] = {}

    def add_blocks(self, blocks: Blocks) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Adds blocks (positions int [C], vectors float32 [C, D]) to the index and yields them."""
        for positions_C, vectors_CxD in blocks:
            if self._ranges_2xD is None:
                self._ranges_2xD = compute_ranges(vectors_CxD)
                calibration = f'minimum and maximum over the first {len(vectors_CxD):,} documents'
                self.settings = {'calibration': calibration}
            codes_CxD = quantize(vectors_CxD, 'int8', self._ranges_2xD)
            self._blocks.append((positions_C, codes_CxD))
            yield positions_C, vectors_CxD

    def search(self, queries_QxD: np.ndarray, k: int) -> Hits:
        """Returns the k best documents of each query."""
        return self._search_exactly(queries_QxD, self._decode(), k)

    def _decode(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for positions_C, codes_CxD in self._blocks:
            assert self._ranges_2xD is not None
            yield positions_C, dequantize(codes_CxD, self._ranges_2xD)


class BinaryIndex:
    """Signs of all documents, searched by Hamming distance, and rescored by float32 queries.

    The `rescore` x k nearest documents of a query are scored by the dot product of the query with
    their bits (0 or 1), which orders them as the dot product with their signs does. This is the
    rescoring of `semantic_search_faiss` in sentence-transformers.

    Attributes:
      settings: settings that the results depend on.
    """

    def __init__(self, rescore: int = 4):
        """Creates an empty index.

        Args:
          rescore: candidates per result; 0 returns the nearest documents as they are.
        """
        self._rescore = rescore
        self._blocks: list[tuple[np.ndarray, np.ndarray]] = []
        self._positions_N = np.zeros(0, np.int64)
        self._bits_NxB = np.zeros((0, 0), np.uint8)
        self._index: HammingIndex | None = None
        self.settings: dict[str, object] = {'rescore': rescore}

    def add_blocks(self, blocks: Blocks) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Adds blocks (positions int [C], vectors float32 [C, D]) to the index and yields them."""
        for positions_C, vectors_CxD in blocks:
            self._blocks.append((positions_C, pack_signs(vectors_CxD)))
            yield positions_C, vectors_CxD
        self._arrange()

    def search(self, queries_QxD: np.ndarray, k: int) -> Hits:
        """Returns the k best documents of each query, by score and then by position."""
        if self._index is None:
            shape = len(queries_QxD), 0
            return Hits(np.zeros(shape, np.float32), np.zeros(shape, np.int64))
        count = min(max(self._rescore, 1) * k, self._index.documents)
        distances_Qxk, rows_Qxk = self._index.search(pack_signs(queries_QxD), count)
        scores_Qxk = -distances_Qxk.astype(np.float32)
        if self._rescore:
            scores_Qxk = self._rescore_rows(queries_QxD, rows_Qxk)
        top = TopK(len(queries_QxD), k)
        top.add(scores_Qxk, self._positions_N[rows_Qxk])
        return top.get_hits()

    def _arrange(self) -> None:
        """Makes the index, with the documents sorted by position, so that the smaller position
        wins a tie."""
        if not self._blocks:
            return
        positions_N = np.concatenate([positions_C for positions_C, _ in self._blocks])
        order_N = np.argsort(positions_N)
        self._positions_N = positions_N[order_N]
        self._bits_NxB = np.concatenate([bits_CxB for _, bits_CxB in self._blocks])[order_N]
        self._blocks = []
        self._index = HammingIndex(self._bits_NxB)

    def _rescore_rows(self, queries_QxD: np.ndarray, rows_Qxk: np.ndarray) -> np.ndarray:
        """Returns float32 [Q, k]: the dot products of queries with the bits of documents."""
        width = queries_QxD.shape[1]
        scores = [np.zeros((0, rows_Qxk.shape[1]), np.float32)]
        for query_D, rows_k in zip(queries_QxD, rows_Qxk, strict=True):
            bits_kxD = np.unpackbits(self._bits_NxB[rows_k], axis=1, count=width)
            scores.append((bits_kxD.astype(np.float32) @ query_D)[None])
        return np.concatenate(scores)
