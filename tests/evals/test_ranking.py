import numpy as np
import pytest

from cpt_jax.errors import UserError
from cpt_jax.evals import ranking
from cpt_jax.evals.ranking import TopK, embed_texts, ranks_of_right, search


def best_by_sorting(scores, k):
    """Positions by (score, earlier first), with Python's own sort."""
    return [sorted(range(len(row)), key=lambda i: (-row[i], i))[:k] for row in scores.tolist()]


@pytest.mark.parametrize('k', [1, 3, 7, 40])
@pytest.mark.parametrize('block', [1, 4, 31])
def test_top_k_equals_sorting_whatever_the_blocks(k, block):
    scores = np.random.default_rng(0).integers(-3, 4, (5, 31)).astype(np.float32) / 2  # many ties, both signs
    scores[0, ::2] *= -0.0
    top = TopK(5, k)
    for start in range(0, 31, block):
        top.add(scores[:, start : start + block])
    hits = top.hits()
    assert hits.documents_QxK.tolist() == best_by_sorting(scores, k)
    assert np.array_equal(hits.scores_QxK, np.take_along_axis(scores, hits.documents_QxK, axis=1))
    assert hits.scores_QxK.dtype == np.float32


def test_top_k_keeps_every_float32_apart():
    near = np.nextafter(np.float32(1), np.float32(2))
    top = TopK(1, 5)
    top.add(np.array([[1, near, -1, -near, -np.inf, 1e-45, 3e38]], np.float32))
    assert top.hits().documents_QxK.tolist() == [[6, 1, 0, 5, 2]]


def test_search_in_small_blocks_equals_one_product(monkeypatch):
    monkeypatch.setattr(ranking, 'QUERIES_AT_ONCE', 3)
    monkeypatch.setattr(ranking, 'DOCUMENTS_AT_ONCE', 4)
    rng = np.random.default_rng(1)
    queries, documents = (rng.integers(-2, 3, (n, 6)).astype(np.float32) for n in (8, 50))  # whole numbers: products are exact
    hits = search(queries, iter([documents[:9], documents[9:10], documents[10:]]), k=10)
    assert hits.documents_QxK.tolist() == best_by_sorting(queries @ documents.T, 10)


def test_ranks_count_ties_against():
    scores = np.random.default_rng(2).integers(0, 5, (30, 30)).astype(np.float32)
    expected = [sum(other >= scores[q, q] for other in scores[q]) for q in range(30)]
    assert ranks_of_right(scores).tolist() == expected
    assert ranks_of_right(np.zeros((4, 4), np.float32)).tolist() == [4, 4, 4, 4]


def test_vectors_that_are_not_finite_are_refused():
    def broken(texts, side):
        return np.full((len(texts), 4), np.nan, np.float32)

    with pytest.raises(UserError, match='not finite .2 of 2 texts'):
        embed_texts(broken, ['a', 'b'], 'x')
