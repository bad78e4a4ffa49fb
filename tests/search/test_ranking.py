"""Rankings: ties, and the rank of the right candidate."""

import numpy as np
import pytest

from cpt_jax.embed.function import embed_texts
from cpt_jax.runtime.errors import UserError
from cpt_jax.search.ranking import TopK, rank_right_candidates


def sort_positions(scores, k):
    """Returns positions by score and then by position, with Python's sort."""
    return [sorted(range(len(row)), key=lambda i: (-row[i], i))[:k] for row in scores.tolist()]


@pytest.mark.parametrize('k', [1, 3, 7, 40])
@pytest.mark.parametrize('block', [1, 4, 31])
def test_top_k_equals_sorting_for_all_block_sizes(k, block):
    # With many ties, and scores of both signs.
    scores = np.random.default_rng(0).integers(-3, 4, (5, 31)).astype(np.float32) / 2
    scores[0, ::2] *= -0.0
    top = TopK(5, k)
    for start in range(0, 31, block):
        top.add(scores[:, start : start + block], np.arange(31)[None, start : start + block])
    hits = top.get_hits()
    assert hits.documents_Qxk.tolist() == sort_positions(scores, k)
    assert np.array_equal(hits.scores_Qxk, np.take_along_axis(scores, hits.documents_Qxk, axis=1))
    assert hits.scores_Qxk.dtype == np.float32


def test_top_k_distinguishes_adjacent_floats():
    near = np.nextafter(np.float32(1), np.float32(2))
    top = TopK(1, 5)
    top.add(np.array([[1, near, -1, -near, -np.inf, 1e-45, 3e38]], np.float32), np.arange(7)[None])
    assert top.get_hits().documents_Qxk.tolist() == [[6, 1, 0, 5, 2]]


def test_top_k_accepts_documents_in_any_order():
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 3, (4, 30)).astype(np.float32)
    order = rng.permuted(np.tile(np.arange(30), (4, 1)), axis=1)
    top = TopK(4, 8)
    for part in (slice(0, 11), slice(11, 30)):
        top.add(np.take_along_axis(scores, order, 1)[:, part], order[:, part])
    assert top.get_hits().documents_Qxk.tolist() == sort_positions(scores, 8)


def test_ties_count_against_the_right_candidate():
    scores = np.random.default_rng(2).integers(0, 5, (30, 30)).astype(np.float32)
    expected = [sum(other >= scores[q, q] for other in scores[q]) for q in range(30)]
    assert rank_right_candidates(scores).tolist() == expected
    assert rank_right_candidates(np.zeros((4, 4), np.float32)).tolist() == [4, 4, 4, 4]
    assert rank_right_candidates(scores[10:20], first=10).tolist() == expected[10:20]


def test_non_finite_vectors_are_an_error():
    def broken(texts, side):
        return np.full((len(texts), 4), np.nan, np.float32)

    with pytest.raises(UserError, match='not finite .2 of 2 texts'):
        embed_texts(broken, ['a', 'b'], 'x')
