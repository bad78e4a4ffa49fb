"""Baselines of search: BM25, which only compares words, and random vectors."""

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


def tokenize_for_bm25(text: str) -> list[str]:
    """Returns the words that BM25 compares, for prose and code alike.

    For example, `getHTTPHeaders` gives get, http and header.
    """
    words = _WORD.findall(_CAMEL.sub(' ', text))
    return [_strip_plural_s(word.lower()) for word in words if len(word) > 1]


def _strip_plural_s(word: str) -> str:
    """Applies the S-stemmer: the first of its three rules that matches (D. Harman, How effective is
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
    """BM25 with Lucene's formula; the documents also determine the word statistics."""

    def __init__(self, documents: Sequence[str]):
        # Imported here because it imports JAX, whose platform the program chooses first.
        import bm25s

        logging.getLogger('bm25s').setLevel(logging.WARNING)  # the library sets DEBUG
        words = [tokenize_for_bm25(document) for document in documents]
        self._documents = len(words)
        # bm25s cannot index an empty vocabulary.
        self._index = bm25s.BM25(method='lucene', k1=K1, b=B) if any(words) else None
        if self._index:
            self._index.index(words, show_progress=False)

    def compute_scores(self, query: str) -> np.ndarray:
        """Returns the score of every document, float32 [documents]; 0 if it shares no word."""
        words = tokenize_for_bm25(query)
        if not words or not self._index:
            return np.zeros(self._documents, np.float32)
        return self._index.get_scores(words).astype(np.float32)

    def search(self, queries: Sequence[str], k: int) -> Hits:
        """Returns the k best documents of each query, all of which share a word with it."""
        found = []
        for query in tqdm(queries, desc='BM25', unit='query', disable=None, leave=False):
            scores_N = self.compute_scores(query)
            top = TopK(1, k)
            top.add(
                np.where(scores_N > 0, scores_N, -np.inf)[None, :],
                np.arange(len(scores_N))[None, :],
            )
            found.append(top.get_hits())
        return Hits(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))


def make_random_embed(seed: int) -> Embed:
    """Returns an embedding function that gives random unit vectors, as the chance baseline."""
    generator = np.random.default_rng(seed)

    def embed(texts: Sequence[str], side: str) -> np.ndarray:
        vectors_NxD = generator.standard_normal((len(texts), RANDOM_WIDTH), np.float32)
        return vectors_NxD / np.linalg.norm(vectors_NxD, axis=1, keepdims=True)

    return embed
