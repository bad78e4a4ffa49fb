"""FAISS's indexes, where somebody wants to know what an approximate search costs in quality."""

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np

from cpt_jax.runtime.errors import UserError
from cpt_jax.search.ranking import Hits

KINDS = 'flat', 'ivf', 'hnsw'

_PER_LIST = 39, 256  # vectors of a list that FAISS's k-means wants at least, and looks at most at
_PROBED = 16  # one list of so many is searched
_LINKS = 32  # of a node of HNSW, FAISS's own default
_SEARCHED = 128  # HNSW's candidates, at least: efSearch
_SEED = 0


def check_installed(kind: str) -> None:
    """Raises UserError where FAISS is not installed."""
    if find_spec('faiss') is None:
        raise UserError(f'--index {kind}: FAISS is not installed: pip install faiss-cpu==1.15.1')


class FaissIndex:
    """An index of inner products that is filled block by block; it holds all vectors in memory.

    'flat' compares with every vector. 'ivf' has 4 sqrt(N) lists, as FAISS's guide for a million
    vectors says, and searches a 16th of them. 'hnsw' is a graph with 32 links a node.

    Attributes:
      settings: all that its results depend on, once it was searched.
    """

    def __init__(self, kind: str):
        """Raises UserError where FAISS is not installed."""
        check_installed(kind)
        import faiss

        self._faiss, self._kind = faiss, kind
        self._index: Any = None
        self._positions: list[np.ndarray] = []
        self._waiting: list[np.ndarray] = []  # lists cannot be chosen before all vectors are there
        self.settings: dict[str, object] = {}

    def filled(
        self, blocks: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The same blocks (positions int [C], vectors float32 [C, D]), each of which it keeps."""
        for positions_C, vectors_CxD in blocks:
            self._positions.append(positions_C)
            if self._kind == 'ivf':
                self._waiting.append(vectors_CxD)
            else:
                self._index = self._index or self._empty(vectors_CxD.shape[1])
                self._index.add(np.ascontiguousarray(vectors_CxD))
            yield positions_C, vectors_CxD

    def search(self, queries_QxD: np.ndarray, k: int) -> Hits:
        """The best k that it finds, by score and then by position; where it finds fewer, scores of
        -inf fill the row.
        """
        positions_N = np.concatenate(self._positions)
        if self._kind == 'ivf':
            self._index = self._lists(len(positions_N))
        if self._kind == 'hnsw':
            self._index.hnsw.efSearch = self.settings['efSearch'] = max(_SEARCHED, k)
        self.settings |= {'faiss': self._faiss.__version__}
        scores_QxK, places_QxK = self._index.search(
            np.ascontiguousarray(queries_QxD), min(k, len(positions_N))
        )
        documents_QxK = np.where(places_QxK >= 0, positions_N[places_QxK], -1)
        scores_QxK = np.where(places_QxK >= 0, scores_QxK, -np.inf).astype(np.float32)
        order_QxK = np.lexsort((documents_QxK, -scores_QxK))
        return Hits(
            *(np.take_along_axis(array, order_QxK, axis=1) for array in (scores_QxK, documents_QxK))
        )

    def _empty(self, width: int) -> Any:
        if self._kind == 'flat':
            return self._faiss.IndexFlatIP(width)
        self.settings |= {'M': _LINKS}
        index = self._faiss.IndexHNSWFlat(width, _LINKS, self._faiss.METRIC_INNER_PRODUCT)
        self.settings |= {'efConstruction': index.hnsw.efConstruction}
        return index

    def _lists(self, total: int) -> Any:
        """An inverted file of all that waits, which is let go block by block."""
        lists = max(1, min(int(4 * total**0.5), total // _PER_LIST[0]))
        width = self._waiting[0].shape[1]
        index = self._faiss.IndexIVFFlat(
            self._faiss.IndexFlatIP(width), width, lists, self._faiss.METRIC_INNER_PRODUCT
        )
        chosen = np.random.default_rng(_SEED).choice(
            total, min(total, lists * _PER_LIST[1]), replace=False
        )
        index.train(_rows(self._waiting, np.sort(chosen)))
        while self._waiting:
            index.add(np.ascontiguousarray(self._waiting.pop(0)))
        index.nprobe = -(-lists // _PROBED)
        self.settings |= {'nlist': lists, 'nprobe': index.nprobe, 'trained_on': len(chosen)}
        return index


def _rows(blocks: list[np.ndarray], places_N: np.ndarray) -> np.ndarray:
    """The rows at ascending places of all blocks together."""
    starts = np.cumsum([0, *(len(block) for block in blocks)])
    cuts = np.searchsorted(places_N, starts)
    return np.concatenate(
        [block[places_N[cuts[i] : cuts[i + 1]] - starts[i]] for i, block in enumerate(blocks)]
    )
