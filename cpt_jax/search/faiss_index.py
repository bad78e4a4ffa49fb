"""FAISS indexes, to measure how much quality an approximate search costs."""

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np

from cpt_jax.runtime.errors import UserError
from cpt_jax.search.ranking import Hits

KINDS = 'flat', 'ivf', 'hnsw'

# Vectors per list for FAISS's k-means: it warns below the minimum, and samples at most the maximum.
_MIN_PER_LIST, _MAX_PER_LIST = 39, 256
_PROBE_FRACTION = 16  # one in this many lists is searched
_LINKS = 32  # links per node of HNSW (M); FAISS's default
_MIN_CANDIDATES = 128  # minimum of HNSW's efSearch
_SEED = 0


def check_installed(kind: str) -> None:
    """Raises UserError if FAISS is not installed."""
    if find_spec('faiss') is None:
        raise UserError(f'--index {kind}: FAISS is not installed: pip install faiss-cpu==1.15.1')


class FaissIndex:
    """Inner-product index that is filled block by block; it keeps all vectors in memory.

    'flat' compares a query with every vector. 'ivf' has 4 sqrt(N) lists, as FAISS's guide
    recommends for a million vectors, and searches 1/16 of them. 'hnsw' is a graph with 32 links per
    node.

    Attributes:
      settings: settings that the results depend on; complete after a search.
    """

    def __init__(self, kind: str):
        """Raises UserError if FAISS is not installed."""
        check_installed(kind)
        import faiss

        self._faiss = faiss
        self._kind = kind
        self._index: Any = None
        self._positions: list[np.ndarray] = []
        self._waiting: list[np.ndarray] = []  # 'ivf' needs all vectors before it can form lists
        self.settings: dict[str, object] = {}

    def add_blocks(
        self, blocks: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Adds blocks (positions int [C], vectors float32 [C, D]) to the index and yields them."""
        for positions_C, vectors_CxD in blocks:
            self._positions.append(positions_C)
            if self._kind == 'ivf':
                self._waiting.append(vectors_CxD)
            else:
                self._index = self._index or self._make_empty_index(vectors_CxD.shape[1])
                self._index.add(np.ascontiguousarray(vectors_CxD))
            yield positions_C, vectors_CxD

    def search(self, queries_QxD: np.ndarray, k: int) -> Hits:
        """Returns the k best documents that the index finds, by score and then by position.

        It may be called again, with other queries, but no block may be added after the first call.
        If the index finds fewer than k documents, the rest of the row has scores of -inf.
        """
        positions_N = np.concatenate(self._positions)
        if self._waiting:
            self._index = self._build_inverted_file(len(positions_N))
        if self._kind == 'hnsw':
            self._index.hnsw.efSearch = self.settings['efSearch'] = max(_MIN_CANDIDATES, k)
        self.settings |= {'faiss': self._faiss.__version__}
        scores_Qxk, indices_Qxk = self._index.search(
            np.ascontiguousarray(queries_QxD), min(k, len(positions_N))
        )
        # FAISS marks missing results with index -1.
        documents_Qxk = np.where(indices_Qxk >= 0, positions_N[indices_Qxk], -1)
        scores_Qxk = np.where(indices_Qxk >= 0, scores_Qxk, -np.inf).astype(np.float32)
        order_Qxk = np.lexsort((documents_Qxk, -scores_Qxk))
        return Hits(
            np.take_along_axis(scores_Qxk, order_Qxk, axis=1),
            np.take_along_axis(documents_Qxk, order_Qxk, axis=1),
        )

    def _make_empty_index(self, width: int) -> Any:
        if self._kind == 'flat':
            return self._faiss.IndexFlatIP(width)
        self.settings |= {'M': _LINKS}
        index = self._faiss.IndexHNSWFlat(width, _LINKS, self._faiss.METRIC_INNER_PRODUCT)
        self.settings |= {'efConstruction': index.hnsw.efConstruction}
        return index

    def _build_inverted_file(self, total: int) -> Any:
        """Returns an 'ivf' index of all waiting vectors, which are released block by block."""
        lists = max(1, min(int(4 * total**0.5), total // _MIN_PER_LIST))
        width = self._waiting[0].shape[1]
        index = self._faiss.IndexIVFFlat(
            self._faiss.IndexFlatIP(width), width, lists, self._faiss.METRIC_INNER_PRODUCT
        )
        chosen = np.random.default_rng(_SEED).choice(
            total, min(total, lists * _MAX_PER_LIST), replace=False
        )
        index.train(_get_rows_from_blocks(self._waiting, np.sort(chosen)))
        while self._waiting:
            index.add(np.ascontiguousarray(self._waiting.pop(0)))
        index.nprobe = -(-lists // _PROBE_FRACTION)
        self.settings |= {'nlist': lists, 'nprobe': index.nprobe, 'trained_on': len(chosen)}
        return index


def _get_rows_from_blocks(blocks: list[np.ndarray], indices_N: np.ndarray) -> np.ndarray:
    """Returns the rows at ascending indices into the concatenation of all blocks."""
    starts = np.cumsum([0, *(len(block) for block in blocks)])
    cuts = np.searchsorted(indices_N, starts)
    return np.concatenate(
        [block[indices_N[cuts[i] : cuts[i + 1]] - starts[i]] for i, block in enumerate(blocks)]
    )
