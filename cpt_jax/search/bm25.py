"""What a score is measured against: BM25, which knows words only, and random vectors, which know
nothing.
"""

import logging
import re
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from cpt_jax.embed.function import Embed
from cpt_jax.search.ranking import Hits, TopK

K1, B = 1.5, 0.75
RANDOM_WIDTH = 128

BM25_SETTINGS = {
    'method': 'lucene',
    'k1': K1,
    'b': B,
    'tokens': 'words and parts of identifiers (split at underscores and camelCase), lower-cased, '
    'two characters or more, without a plural s (Harman 1991)',
}

_WORD = re.compile(r'[^\W_]+')
_CAMEL = re.compile(r'(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])')


def bm25_tokens(text: str) -> list[str]:
    """The words that BM25 compares, the same for prose and for code: `getHTTPHeaders` gives get,
    http, header.
    """
    return [
        _singular(word.lower()) for word in _WORD.findall(_CAMEL.sub(' ', text)) if len(word) > 1
    ]


def _singular(word: str) -> str:
    """The S-stemmer: the first of its three rules that applies (D. Harman, How effective is
    suffixing?, 1991).
    """
    if len(word) < 4 or not word.endswith('s'):
        return word
    if word.endswith('ies') and not word.endswith(('eies', 'aies')):
        return word[:-3] + 'y'
    if word.endswith('es') and not word.endswith(('aes', 'ees', 'oes')):
        return word[:-1]
    return word if word.endswith(('us', 'ss')) else word[:-1]


class Bm25:
    """BM25 over a list of documents, with Lucene's formula; word statistics are those of the same
    documents.
    """

    def __init__(self, documents: Sequence[str]):
        # Not at the top: it imports JAX, and the program first chooses a platform for it.
        import bm25s

        logging.getLogger('bm25s').setLevel(logging.WARNING)  # it sets itself to DEBUG
        words = [bm25_tokens(document) for document in documents]
        self._documents = len(words)
        # It cannot index an empty vocabulary.
        self._index = bm25s.BM25(method='lucene', k1=K1, b=B) if any(words) else None
        if self._index:
            self._index.index(words, show_progress=False)

    def scores(self, query: str) -> np.ndarray:
        """float32[documents]; 0 for a document that shares no word with the query."""
        words = bm25_tokens(query)
        if not words or not self._index:
            return np.zeros(self._documents, np.float32)
        return self._index.get_scores(words).astype(np.float32)

    def search(self, queries: Sequence[str], k: int) -> Hits:
        """The k best documents of each query, as a search engine gives them: only those that share
        a word with it.
        """
        found = []
        for query in tqdm(queries, desc='BM25', unit='query', disable=None, leave=False):
            scores_N = self.scores(query)
            top = TopK(1, k)
            top.add(
                np.where(scores_N > 0, scores_N, -np.inf)[None, :],
                np.arange(len(scores_N))[None, :],
            )
            found.append(top.hits())
        return Hits(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))


def random_embed(seed: int) -> Embed:
    """An embedding function that gives random directions: what a metric shows when nothing is
    known.
    """
    generator = np.random.default_rng(seed)

    def embed(texts: Sequence[str], side: str) -> np.ndarray:
        vectors_NxD = generator.standard_normal((len(texts), RANDOM_WIDTH), np.float32)
        return vectors_NxD / np.linalg.norm(vectors_NxD, axis=1, keepdims=True)

    return embed
