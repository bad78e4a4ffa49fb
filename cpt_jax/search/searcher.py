"""How the documents of a query are looked for: exactly, or with an index of FAISS beside it; and
what else looks for them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from cpt_jax.embed.function import Embed, embed_texts
from cpt_jax.search.bm25 import BM25_SETTINGS, RANDOM_WIDTH, Bm25, random_embed
from cpt_jax.search.documents import IndexedDocuments
from cpt_jax.search.faiss_index import KINDS, FaissIndex, check_installed
from cpt_jax.search.ranking import Hits

INDEXES = 'exact', *KINDS
BASELINES = 'bm25', 'random'
BM25_DOCUMENTS = 1_000_000  # it holds the words of all of them in memory
SEED = 0


class Searched(NamedTuple):
    """What a search gives.

    Attributes:
      hits: 'model', and the baselines.
      exact: those of exact search with the model, where its `hits` are of an index.
      settings: all that the hits depend on besides the texts.
    """

    hits: dict[str, Hits]
    exact: Hits | None
    settings: dict[str, object]


@dataclass(frozen=True)
class Searcher:
    """Looks for documents.

    Attributes:
      index: 'exact', or a kind of FAISS's.
      memory: GiB, see `exact.search_exactly`.
      baselines: those of `BASELINES` that are searched too.
    """

    index: str = 'exact'
    memory: float = 2.0
    baselines: Sequence[str] = BASELINES

    def __post_init__(self):
        if self.index != 'exact':
            check_installed(self.index)  # at once, and not after the documents are embedded

    def search(
        self, embed: Embed, documents: IndexedDocuments, queries: Sequence[str], k: int
    ) -> Searched:
        """The best k documents of each query."""
        model, exact, settings = self._with_index(
            embed_texts(embed, queries, 'x'), documents.embedded(embed), k
        )
        hits = {'model': model}
        if 'bm25' in self.baselines and len(documents) > BM25_DOCUMENTS:
            tqdm.write(
                f'BM25 is left out: {len(documents):,} documents are more than '
                f'{BM25_DOCUMENTS:,}, whose words it can hold in memory'
            )
        elif 'bm25' in self.baselines:
            hits['bm25'] = Bm25(documents.in_order()).search(queries, k)
            settings |= {'bm25': BM25_SETTINGS}
        if 'random' in self.baselines:
            random = random_embed(SEED)
            hits['random'] = self._exactly(
                random(queries, 'x'), documents.embedded(random, say=False), k
            )
            settings |= {'seed': SEED, 'random_width': RANDOM_WIDTH}
        return Searched(hits, exact, settings)

    def _with_index(
        self, queries_QxD: np.ndarray, blocks: Iterable[tuple[np.ndarray, np.ndarray]], k: int
    ) -> tuple[Hits, Hits | None, dict[str, object]]:
        """The hits of the model, those of exact search where they are not the same, and the
        settings of the index.
        """
        if self.index == 'exact':
            return self._exactly(queries_QxD, blocks, k), None, {'index': 'exact'}
        index = FaissIndex(self.index)
        exact = self._exactly(queries_QxD, index.filled(blocks), k)
        return index.search(queries_QxD, k), exact, {'index': self.index, **index.settings}

    def _exactly(
        self, queries_QxD: np.ndarray, blocks: Iterable[tuple[np.ndarray, np.ndarray]], k: int
    ) -> Hits:
        # Imports JAX: not before the program has chosen a platform for it.
        from cpt_jax.search.across_hosts import search_everywhere

        return search_everywhere(queries_QxD, blocks, k, self.memory)


def recall_against(exact: Hits, hits: Hits) -> float:
    """The share of the documents of exact search that `hits` has too; mean over the queries for
    which there is any, 1 without such.
    """
    pairs = zip(_rows(exact), _rows(hits), strict=True)
    shares = [np.isin(right_K, found_K).mean() for right_K, found_K in pairs if len(right_K)]
    return float(np.mean(shares)) if shares else 1.0


def _rows(hits: Hits) -> list[np.ndarray]:
    return [
        found_K[score_K > -np.inf]
        for found_K, score_K in zip(hits.documents_QxK, hits.scores_QxK, strict=True)
    ]
