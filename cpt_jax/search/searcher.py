"""Search of documents with a model, exactly or with a FAISS index, and with the baselines."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from cpt_jax.embed.function import Embed, describe_similarity, embed_texts
from cpt_jax.runtime.errors import UserError
from cpt_jax.search.bm25 import BM25_SETTINGS, RANDOM_WIDTH, Bm25, make_random_embed
from cpt_jax.search.documents import IndexedDocuments
from cpt_jax.search.faiss_index import KINDS, FaissIndex, check_installed
from cpt_jax.search.ranking import Hits

INDEXES = 'exact', *KINDS
BASELINES = 'bm25', 'random'
# Maximum documents for BM25, which holds the words of all documents in memory.
BM25_DOCUMENTS = 1_000_000
SEED = 0


class SearchResults(NamedTuple):
    """Results of a search.

    Attributes:
      hits: hits of 'model' and of each baseline.
      exact: hits of exact search with the model and float32 vectors, if `hits` are from an index;
        else None.
      settings: settings that the hits depend on, besides the texts.
    """

    hits: dict[str, Hits]
    exact: Hits | None
    settings: dict[str, object]


@dataclass(frozen=True)
class Searcher:
    """Searches documents.

    Attributes:
      index: 'exact', or a kind of FAISS index.
      memory: GiB, see `exact.search_exactly`.
      baselines: names of baselines (see `BASELINES`) that are searched with too.
      precision: precision of the documents' vectors, one of `vector_codes.PRECISIONS`.
      rescore: candidates per result that float32 queries score, for binary vectors.
    """

    index: str = 'exact'
    memory: float = 2.0
    baselines: Sequence[str] = BASELINES
    precision: str = 'float32'
    rescore: int = 4

    def __post_init__(self):
        if self.index != 'exact' and self.precision != 'float32':
            raise UserError(
                f'--precision {self.precision}: the index {self.index} holds float32 vectors: '
                f'remove --index'
            )
        if self.index != 'exact':
            check_installed(self.index)  # before documents are embedded, which may take long

    def search(
        self, embed: Embed, documents: IndexedDocuments, queries: Sequence[str], k: int
    ) -> SearchResults:
        """Searches the k best documents of each query, with the model and the baselines."""
        queries_QxD = embed_texts(embed, queries, 'x')
        model, exact, settings = self._search_with_index(
            queries_QxD, documents.embed_blocks(embed), k
        )
        settings |= describe_similarity(queries_QxD)
        hits = {'model': model}
        if 'bm25' in self.baselines and len(documents) > BM25_DOCUMENTS:
            tqdm.write(
                f'BM25 is left out: {len(documents):,} documents are more than the '
                f'{BM25_DOCUMENTS:,} whose words it can hold in memory'
            )
        elif 'bm25' in self.baselines:
            hits['bm25'] = Bm25(documents.load_all_texts()).search(queries, k)
            settings |= {'bm25': BM25_SETTINGS}
        if 'random' in self.baselines:
            random = make_random_embed(SEED)
            hits['random'] = self._search_exactly(
                random(queries, 'x'), documents.embed_blocks(random, show_progress=False), k
            )
            settings |= {'seed': SEED, 'random_width': RANDOM_WIDTH}
        return SearchResults(hits, exact, settings)

    def _search_with_index(
        self, queries_QxD: np.ndarray, blocks: Iterable[tuple[np.ndarray, np.ndarray]], k: int
    ) -> tuple[Hits, Hits | None, dict[str, object]]:
        """Returns the hits of the model, those of exact search (None if that is the index), and the
        settings of the index.
        """
        if self.precision != 'float32':
            return self._search_quantized(queries_QxD, blocks, k)
        if self.index == 'exact':
            return self._search_exactly(queries_QxD, blocks, k), None, {'index': 'exact'}
        index = FaissIndex(self.index)
        exact = self._search_exactly(queries_QxD, index.add_blocks(blocks), k)
        return index.search(queries_QxD, k), exact, {'index': self.index, **index.settings}

    def _search_quantized(
        self, queries_QxD: np.ndarray, blocks: Iterable[tuple[np.ndarray, np.ndarray]], k: int
    ) -> tuple[Hits, Hits, dict[str, object]]:
        """Returns the hits of quantized vectors, those of exact search, and the settings."""
        from cpt_jax.search.quantized_index import BinaryIndex, Int8Index  # imports JAX

        index: Int8Index | BinaryIndex
        if self.precision == 'int8':
            index = Int8Index(self._search_exactly)
        else:
            index = BinaryIndex(self.rescore)
        exact = self._search_exactly(queries_QxD, index.add_blocks(blocks), k)
        hits = index.search(queries_QxD, k)
        return hits, exact, {'index': self.precision, **index.settings}

    def _search_exactly(
        self, queries_QxD: np.ndarray, blocks: Iterable[tuple[np.ndarray, np.ndarray]], k: int
    ) -> Hits:
        # Imported here because it imports JAX, whose platform the program chooses first.
        from cpt_jax.search.across_hosts import search_everywhere

        return search_everywhere(queries_QxD, blocks, k, self.memory)


def compute_search_recalls(exact: Hits, hits: Hits) -> np.ndarray:
    """Returns the fraction of the documents of exact search that are also in `hits`.

    Returns:
      float64 [Q], one number for each query; 1 if exact search finds no document.
    """
    pairs = zip(_drop_empty_hits(exact), _drop_empty_hits(hits), strict=True)
    recalls = [
        np.isin(right_k, found_k).mean() if len(right_k) else 1.0 for right_k, found_k in pairs
    ]
    return np.array(recalls)


def _drop_empty_hits(hits: Hits) -> list[np.ndarray]:
    """Returns the documents of each query, without the entries that have no document."""
    return [
        found_k[score_k > -np.inf]
        for found_k, score_k in zip(hits.documents_Qxk, hits.scores_Qxk, strict=True)
    ]
