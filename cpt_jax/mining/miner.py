"""Mines negatives group by group, so that memory is bounded and an interrupted program resumes."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cpt_jax.data.equality import NORMALIZED
from cpt_jax.data.pairs import digest_texts
from cpt_jax.mining.pair_index import PairIndex, find_exclusions
from cpt_jax.mining.progress import Progress
from cpt_jax.mining.reranker_scores import RerankerScores
from cpt_jax.mining.rules import MiningRules
from cpt_jax.mining.selection import (
    Negatives,
    Positives,
    remove_documents,
    remove_near_documents,
    remove_same_vectors,
    select_negatives,
    sort_by_score,
)
from cpt_jax.mining.stored_vectors import StoredVectors
from cpt_jax.search.bm25 import Bm25
from cpt_jax.search.faiss_index import FaissIndex
from cpt_jax.search.ranking import Hits
from cpt_jax.storage.atomic_write import open_atomically
from cpt_jax.storage.cache import array_to_json, json_to_array, read_arrays

# Queries that are searched together: as many as one pass over the documents is worth, and as a
# killed program may search again.
MOST_QUERIES = 16_384
# Maximum number of documents that are searched because others are positives. A query with more
# positives among its nearest documents has fewer candidates.
MOST_EXCLUDED = 1_000
# Bytes of a hit while it is searched and selected: keys, scores, indices and their copies.
_BYTES_PER_HIT = 64
_VECTORS_AT_ONCE = 65_536


class Mined(NamedTuple):
    """The negatives of all queries.

    Attributes:
      negatives: negatives of each query.
      positive_scores_N: float32, score of each pair; NaN if it has none.
      counts: number of candidates that were removed, by reason.
    """

    negatives: Negatives
    positive_scores_N: np.ndarray
    counts: Counter[str]


@dataclasses.dataclass
class ModelVectors:
    """The vectors in which the model searches.

    Attributes:
      queries, documents: vectors of all queries and documents.
      index: 'exact', or a kind of FAISS index, which keeps all vectors in memory.
      memory: GiB for a search, without the vectors.
    """

    queries: StoredVectors
    documents: StoredVectors
    index: str = 'exact'
    memory: float = 2.0
    _faiss: FaissIndex | None = None

    def choose_group_size(self, k: int) -> int:
        """Returns the number of queries whose k hits, with their vectors, fit into half of the
        memory.
        """
        bytes_each = k * _BYTES_PER_HIT + 8 * self.queries.shards[0].shape[1]
        return int(np.clip(self.memory / 2 * 2**30 / bytes_each, 1, MOST_QUERIES))

    def search(self, rows: range, k: int, progress: Progress) -> Hits:
        """Returns the k nearest documents of some queries."""
        from cpt_jax.search.across_hosts import search_everywhere  # imports JAX

        queries_QxD = self.queries.take(np.array(rows))
        if self.index == 'exact':
            blocks = _count_blocks(self.documents.iterate_blocks(), progress)
            return search_everywhere(queries_QxD, blocks, k, self.memory / 2)
        if not self._faiss:
            self._faiss = FaissIndex(self.index)
            for _ in self._faiss.add_blocks(self.documents.iterate_blocks()):
                pass
        hits = self._faiss.search(queries_QxD, k)
        progress.update(self.documents.size)
        return hits

    def compute_scores(self, queries_M: np.ndarray, documents_M: np.ndarray) -> np.ndarray:
        """Returns float32[M]: dot products of queries and documents."""
        scores_M = np.empty(len(queries_M), np.float32)
        for start in range(0, len(queries_M), _VECTORS_AT_ONCE):
            part = slice(start, start + _VECTORS_AT_ONCE)
            scores_M[part] = np.einsum(
                'md,md->m',
                self.queries.take(queries_M[part]),
                self.documents.take(documents_M[part]),
            )
        return scores_M


class Miner:
    """Mines the negatives of pairs."""

    def __init__(
        self,
        index: PairIndex,
        rules: MiningRules,
        model: ModelVectors | None,
        bm25: Bm25 | None = None,
        reranker: RerankerScores | None = None,
    ):
        """Prepares to mine.

        Args:
          index: the pairs.
          rules: rules by which negatives are selected.
          model: vectors of the texts; None if all negatives are from BM25.
          bm25: BM25 of the documents, if negatives are from its ranking.
          reranker: scores that replace the model's, optional.
        """
        self._index = index
        self._rules = rules
        self._model = model
        self._bm25 = bm25
        self._reranker = reranker
        self._excluded = find_exclusions(index, rules.equal_texts)
        self._pairs_N = np.argsort(index.queries_N, kind='stable')
        self._sorted_queries_N = index.queries_N[self._pairs_N]
        self._k = rules.last + min(self._excluded.most, MOST_EXCLUDED)

    def mine(self, folder: Path, model_settings: object = None) -> Mined:
        """Returns the negatives of all queries.

        Args:
          folder: folder for the results of each group, so that an interrupted program resumes.
          model_settings: what the vectors depend on, besides the texts.
        """
        total = self._index.queries.size
        size = self._model.choose_group_size(self._k) if self._model else MOST_QUERIES
        groups = [range(start, min(start + size, total)) for start in range(0, total, size)]
        folder = folder / f'selected-{self._compute_digest(model_settings)}'
        folder.mkdir(parents=True, exist_ok=True)
        paths = {group: folder / f'{group.start}-{group.stop}.npz' for group in groups}
        missing = [group for group in groups if read_arrays(paths[group]) is None]
        if self._model:
            progress = Progress('searching', len(missing) * self._model.documents.size, 'document')
        else:
            progress = Progress('searching', sum(map(len, missing)), 'query')
        with progress:
            for group in missing:
                self._mine_group(group, paths[group], progress)
        return self._collect(paths)

    def _mine_group(self, rows: range, path: Path, progress: Progress) -> None:
        """Mines the negatives of some queries, and writes them to a file."""
        positives, first = self._find_positives(rows)
        counts: Counter[str] = Counter()
        bm25 = None
        if self._bm25:
            bm25 = self._bm25.search(self._index.queries.read_texts(rows), self._k)
        if self._model:
            hits = self._model.search(rows, self._k, progress)
            counts += self._remove(hits, rows, positives)
            if bm25:
                bm25 = Hits(self._compute_bm25_model_scores(bm25, rows), bm25.documents_Qxk)
                self._remove(bm25, rows, positives)
            if self._reranker:
                hits = sort_by_score(hits)
        else:
            assert bm25
            hits = bm25
            bm25 = None
            counts['known positives'] += self._remove_known(hits, rows)
            progress.update(len(rows))
        counts['candidates'] += int((hits.scores_Qxk > -np.inf).sum())
        keys_Q = self._index.queries.keys_N[rows.start : rows.stop]
        negatives = select_negatives(hits, bm25, keys_Q, self._rules)
        with open_atomically(path) as file:
            np.savez(
                file,
                documents=negatives.documents_QxM,
                scores=negatives.scores_QxM,
                pairs=self._pairs_N[first : first + len(positives.scores_P)],
                positive_scores=positives.scores_P,
                counts=json_to_array(counts),
            )

    def _find_positives(self, rows: range) -> tuple[Positives, int]:
        """Returns the positives of some queries, and the position of the first in `_pairs_N`."""
        first, end = np.searchsorted(self._sorted_queries_N, [rows.start, rows.stop])
        queries_P = self._sorted_queries_N[first:end]
        documents_P = self._index.documents_N[self._pairs_N[first:end]]
        scores_P = np.full(len(queries_P), np.nan, np.float32)
        if self._reranker:
            scores_P = self._find_reranker_scores(self._reranker, queries_P, documents_P)
        elif self._model:
            scores_P = self._model.compute_scores(queries_P, documents_P)
        return Positives(queries_P - rows.start, documents_P, scores_P), int(first)

    def _remove(self, hits: Hits, rows: range, positives: Positives) -> Counter[str]:
        """Removes the documents that are no negatives from the hits of the model, in place.

        Returns:
          How many were removed, by reason.
        """
        assert self._model
        counts = Counter({'known positives': self._remove_known(hits, rows)})
        if self._rules.equal_texts == NORMALIZED:
            own_P = positives.scores_P
            if self._reranker:
                own_P = self._model.compute_scores(
                    positives.queries_P + rows.start, positives.documents_P
                )
            counts['equal vectors'] += remove_same_vectors(
                hits, positives._replace(scores_P=own_P), self._model.documents
            )
        if self._reranker:
            kept_Q, kept_k = np.nonzero(hits.scores_Qxk > -np.inf)
            hits.scores_Qxk[kept_Q, kept_k] = self._find_reranker_scores(
                self._reranker, kept_Q + rows.start, hits.documents_Qxk[kept_Q, kept_k]
            )
        return counts + remove_near_documents(hits, positives, self._rules)

    def _remove_known(self, hits: Hits, rows: range) -> int:
        """Removes the positives of each query; returns how many there were."""
        first, end = np.searchsorted(self._excluded.queries_E, [rows.start, rows.stop])
        queries_E = self._excluded.queries_E[first:end] - rows.start
        return remove_documents(hits, queries_E, self._excluded.documents_E[first:end])

    def _compute_bm25_model_scores(self, hits: Hits, rows: range) -> np.ndarray:
        """Returns float32[Q, k]: the model's scores of BM25's hits."""
        assert self._model
        scores_Qxk = np.full(hits.scores_Qxk.shape, -np.inf, np.float32)
        found_Q, found_k = np.nonzero(hits.scores_Qxk > -np.inf)
        scores_Qxk[found_Q, found_k] = self._model.compute_scores(
            found_Q + rows.start, hits.documents_Qxk[found_Q, found_k]
        )
        return scores_Qxk

    def _find_reranker_scores(
        self, reranker: RerankerScores, queries_M: np.ndarray, documents_M: np.ndarray
    ) -> np.ndarray:
        """Returns float32[M]: the reranker's scores of queries and documents, NaN where missing."""
        return reranker.find_scores(
            self._index.queries.keys_N[queries_M], self._index.documents.keys_N[documents_M]
        )

    def _collect(self, paths: dict[range, Path]) -> Mined:
        """Reads the results of all groups."""
        documents = []
        scores = []
        positive_scores_N = np.empty(len(self._pairs_N), np.float32)
        counts: Counter[str] = Counter()
        for path in paths.values():
            arrays = read_arrays(path)
            assert arrays is not None, path
            documents.append(arrays['documents'])
            scores.append(arrays['scores'])
            positive_scores_N[arrays['pairs']] = arrays['positive_scores']
            counts += Counter(array_to_json(arrays['counts']))
        negatives = Negatives(np.concatenate(documents), np.concatenate(scores))
        return Mined(negatives, positive_scores_N, counts)

    def _compute_digest(self, model_settings: object) -> str:
        """Returns a digest of all that the negatives depend on."""
        values = [
            dataclasses.asdict(self._rules),
            self._index.fingerprint,
            self._model.index if self._model else '',
            self._reranker.compute_fingerprint() if self._reranker else '',
            model_settings,
        ]
        return digest_texts(json.dumps(values, sort_keys=True))[:16]


def _count_blocks(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], progress: Progress
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the blocks, and counts their documents as done when the next one is requested."""
    for block in blocks:
        yield block
        progress.update(len(block[0]))
