"""Which candidates become negatives, against sentence-transformers' order of steps in ten lines."""

import numpy as np
import pytest

from cpt_jax.mining.rules import MiningRules, parse_range
from cpt_jax.mining.selection import (
    Positives,
    remove_documents,
    remove_near_documents,
    remove_same_vectors,
    select_negatives,
)
from cpt_jax.mining.stored_vectors import StoredVectors
from cpt_jax.runtime.errors import UserError
from cpt_jax.search.ranking import Hits

QUERIES, K = 40, 30


def make_hits(seed: int = 0) -> Hits:
    """Returns hits with scores between -1 and 1, so that many positives have negative scores."""
    random = np.random.default_rng(seed)
    scores = -np.sort(-random.uniform(-1, 1, (QUERIES, K)).astype(np.float32), axis=1)
    return Hits(scores, np.stack([random.permutation(100)[:K] for _ in range(QUERIES)]))


def make_positives(hits: Hits) -> Positives:
    """Returns two positives of each query: one of its hits, and one outside of them."""
    queries = np.repeat(np.arange(QUERIES), 2)
    documents = np.stack([hits.documents_Qxk[:, 8], np.full(QUERIES, 100)], axis=1).ravel()
    scores = np.stack([hits.scores_Qxk[:, 8], hits.scores_Qxk[:, 8] + 0.5], axis=1).ravel()
    return Positives(queries, documents, scores)


def select_by_reference(hits: Hits, positives: Positives, rules: MiningRules) -> list[list[int]]:
    selected = []
    for q in range(QUERIES):
        own = positives.queries_P == q
        least = positives.scores_P[own].min()
        kept = [
            document
            for score, document in zip(hits.scores_Qxk[q], hits.documents_Qxk[q], strict=True)
            if document not in positives.documents_P[own]
            and score <= least - abs(least) * np.float32(1 - rules.max_share)
            and (rules.margin is None or score + np.float32(rules.margin) <= least)
        ]
        selected.append(kept[: rules.last][rules.first :][: rules.negatives])
    return selected


def copy(hits: Hits) -> Hits:
    return Hits(hits.scores_Qxk.copy(), hits.documents_Qxk)


@pytest.mark.parametrize(('max_share', 'margin'), [(0.95, None), (0.8, 0.1), (1.0, 0.3)])
def test_candidates_that_are_too_near_are_removed_before_the_range_is_cut(max_share, margin):
    rules = MiningRules(2, 12, 5, max_share, margin)
    hits = make_hits()
    positives = make_positives(hits)
    found = copy(hits)
    assert remove_documents(found, positives.queries_P, positives.documents_P) == QUERIES
    counts = remove_near_documents(found, positives, rules)
    negatives = select_negatives(found, None, np.arange(QUERIES, dtype=np.uint64), rules)
    expected = select_by_reference(hits, positives, rules)
    assert [row[row >= 0].tolist() for row in negatives.documents_QxM] == expected
    assert counts['by --max_share'] + counts['by --margin'] > QUERIES
    is_kept = negatives.documents_QxM >= 0
    np.testing.assert_array_equal(is_kept, negatives.scores_QxM > -np.inf)
    assert (np.diff(np.where(is_kept, negatives.scores_QxM, -2)) <= 0).all()


def test_share_of_a_negative_score_lies_below_it():
    """A multiplication by 0.95 would raise the limit to -0.19."""
    hits = Hits(np.array([[-0.195, -0.205, -0.215]], np.float32), np.arange(3)[None])
    positives = Positives(np.array([0]), np.array([9]), np.array([-0.2], np.float32))
    remove_near_documents(hits, positives, MiningRules(0, 3, 1, 0.95))
    assert (hits.scores_Qxk[0] > -np.inf).tolist() == [False, False, True]


def test_random_negatives_depend_on_seed_and_query_alone():
    rules = MiningRules(3, 20, 5, sampling='random', seed=1)
    keys = np.arange(QUERIES, dtype=np.uint64)
    hits = make_hits()
    whole = select_negatives(hits, None, keys, rules)
    part = select_negatives(Hits(*(array[7:] for array in hits)), None, keys[7:], rules)
    np.testing.assert_array_equal(whole.documents_QxM[7:], part.documents_QxM)
    in_range = [set(row[3:20]) for row in hits.documents_Qxk]
    assert all(
        {*row} <= allowed for row, allowed in zip(whole.documents_QxM, in_range, strict=True)
    )
    assert all(len({*row}) == 5 for row in whole.documents_QxM)
    other = select_negatives(hits, None, keys, MiningRules(3, 20, 5, sampling='random', seed=2))
    assert (other.documents_QxM != whole.documents_QxM).any()


def test_bm25_gives_its_share_and_the_model_the_rest():
    model = Hits(np.array([[0.9, 0.8, 0.7, 0.6]], np.float32), np.array([[0, 1, 2, 3]]))
    # Document 0 is also the model's first; document 5 was removed.
    bm25 = Hits(np.array([[0.9, -np.inf, 0.1, 0.2]], np.float32), np.array([[0, 5, 7, 8]]))
    rules = MiningRules(0, 4, 4, bm25=2)
    negatives = select_negatives(model, bm25, np.zeros(1, np.uint64), rules)
    assert negatives.documents_QxM.tolist() == [[0, 1, 2, 7]]
    np.testing.assert_allclose(negatives.scores_QxM, [[0.9, 0.8, 0.7, 0.1]])


def test_documents_with_the_vector_of_a_positive_are_removed():
    random = np.random.default_rng(0)
    vectors = random.standard_normal((6, 4)).astype(np.float32)
    vectors[3] = vectors[1]
    query = random.standard_normal(4).astype(np.float32)
    vectors[4] = vectors[1]
    vectors[4, :2] += np.array([query[1], -query[0]]) / 9  # equal score, another vector
    scores = vectors @ query
    documents = StoredVectors([vectors[:4], vectors[4:]], 4)
    hits = Hits(scores[None].copy(), np.arange(6)[None])
    positives = Positives(np.array([0]), np.array([1]), scores[1:2])
    assert abs(scores[4] - scores[1]) < 1e-6
    assert remove_same_vectors(hits, positives, documents) == 2
    assert np.flatnonzero(hits.scores_Qxk[0] == -np.inf).tolist() == [1, 3]


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ({'first': 5, 'last': 5}, '--range 5:5: must be FIRST:LAST with 0 <= FIRST < LAST'),
        ({'first': 10, 'last': 15}, '--negatives 7: --range 10:15 has 5 candidates'),
        ({'max_share': 0.0}, '--max_share 0: must be above 0'),
        ({'bm25': 8}, '--bm25 8: must be at most --negatives 7'),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        MiningRules(**given)


def test_range_is_two_numbers():
    assert parse_range('10:100') == (10, 100)
    for text in ('10', '10-100', '-1:5', ':5'):
        with pytest.raises(UserError, match=f'--range {text}: must be FIRST:LAST'):
            parse_range(text)
