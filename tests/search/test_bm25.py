"""BM25 equals Lucene's formula, and finds only documents that share a word."""

import math

import numpy as np
import pytest

from cpt_jax.search.bm25 import Bm25, make_random_embed, tokenize_for_bm25

DOCUMENTS = [
    'the cat sat on the mat',
    'a dog chased the cat, the cat ran',
    'stocks fell sharply',
    '',
    'def readCatFile(path_name): pass',
]


def compute_lucene_score(query, document, k1=1.5, b=0.75):
    words = [tokenize_for_bm25(text) for text in DOCUMENTS]
    mean = sum(map(len, words)) / len(words)
    total = 0.0
    for word in tokenize_for_bm25(query):
        seen = sum(word in other for other in words)
        times = words[document].count(word)
        idf = math.log(1 + (len(words) - seen + 0.5) / (seen + 0.5))
        total += idf * times / (times + k1 * (1 - b + b * len(words[document]) / mean))
    return total


@pytest.mark.parametrize(
    'query', ['cat', 'the cat files', 'sharply falling stocks', 'path of the cats', 'cat cat dog']
)
def test_bm25_equals_lucene_formula(query):
    expected = [compute_lucene_score(query, document) for document in range(len(DOCUMENTS))]
    np.testing.assert_allclose(
        Bm25(DOCUMENTS).compute_scores(query), expected, rtol=1e-5, atol=1e-7
    )


def test_bm25_finds_only_documents_that_share_a_word():
    hits = Bm25(DOCUMENTS).search(['cat', 'zebra', '?'], k=10)
    assert sorted(hits.documents_Qxk[0][hits.scores_Qxk[0] > -np.inf].tolist()) == [0, 1, 4]
    assert (hits.scores_Qxk[1:] == -np.inf).all()


def test_bm25_scores_are_zero_without_words():
    assert Bm25(['', '?', 'x']).compute_scores('anything').tolist() == [0, 0, 0]


def test_bm25_splits_prose_and_code_into_words():
    assert tokenize_for_bm25('Reads the HTTPHeaders of_all self.parsedUrl2') == [
        'read',
        'the',
        'http',
        'header',
        'of',
        'all',
        'self',
        'parsed',
        'url2',
    ]
    assert tokenize_for_bm25('queries glasses status trees bus a') == [
        'query',
        'glasse',
        'status',
        'tree',
        'bus',
    ]
    assert tokenize_for_bm25('Äpfel über x_y 3') == ['äpfel', 'über']


def test_random_vectors_have_unit_length_and_are_repeatable():
    vectors, again = (make_random_embed(3)(['a', 'b', 'c'], 'x') for _ in range(2))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert np.array_equal(vectors, again) and vectors.dtype == np.float32
    assert not np.array_equal(vectors, make_random_embed(4)(['a', 'b', 'c'], 'x'))
