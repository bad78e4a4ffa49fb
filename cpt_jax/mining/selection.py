"""Selects the negatives of a group of queries from their candidates."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from cpt_jax.mining.rules import MiningRules
from cpt_jax.mining.stored_vectors import StoredVectors
from cpt_jax.search.ranking import Hits

# Two documents of which a model reads the same tokens have scores, and vectors, that differ by
# rounding alone.
_SAME = 1e-5
_PAIRS_AT_ONCE = 4_096


class Positives(NamedTuple):
    """The positives of a group of queries.

    Attributes:
      queries_P: int64, row in the group of the query of each pair.
      documents_P: int64, index of the document of each pair.
      scores_P: float32, score of each pair; NaN if there is none.
    """

    queries_P: np.ndarray
    documents_P: np.ndarray
    scores_P: np.ndarray


class Negatives(NamedTuple):
    """The negatives of a group of queries, the one with the highest score first.

    Attributes:
      documents_QxM: int64, indices of the documents; -1 where a query has fewer.
      scores_QxM: float32; -inf where a query has fewer.
    """

    documents_QxM: np.ndarray
    scores_QxM: np.ndarray


def remove_documents(hits: Hits, queries_P: np.ndarray, documents_P: np.ndarray) -> int:
    """Removes pairs of queries and documents from the hits, in place; returns how many there were.

    Args:
      hits: hits of Q queries; the score of a removed document becomes -inf.
      queries_P: int64, row of the query of each pair.
      documents_P: int64, index of the document of each pair.
    """
    most = np.int64(max(hits.documents_Qxk.max(initial=0), documents_P.max(initial=0)) + 1)
    rows_Qx1 = np.arange(len(hits.documents_Qxk))[:, None]
    found_Qxk = np.isin(rows_Qx1 * most + hits.documents_Qxk, queries_P * most + documents_P)
    return _remove(hits.scores_Qxk, found_Qxk)


def remove_same_vectors(hits: Hits, positives: Positives, documents: StoredVectors) -> int:
    """Removes the documents that have the vector of a positive, in place; returns their number.

    Args:
      hits: hits of Q queries, with the model's scores.
      positives: positives of these queries, with the model's scores.
      documents: vectors of all documents.
    """
    removed = 0
    for start in range(0, len(positives.queries_P), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        queries_p = positives.queries_P[part]
        distance_pxk = np.abs(hits.scores_Qxk[queries_p] - positives.scores_P[part][:, None])
        pairs_M, ranks_M = np.nonzero(distance_pxk < _SAME)
        if not len(pairs_M):
            continue
        rows_M = queries_p[pairs_M]
        found_MxD = documents.take(hits.documents_Qxk[rows_M, ranks_M])
        positive_MxD = documents.take(positives.documents_P[part][pairs_M])
        is_same_M = np.abs(found_MxD - positive_MxD).max(axis=1) < _SAME
        same_Qxk = np.zeros(hits.scores_Qxk.shape, bool)
        same_Qxk[rows_M[is_same_M], ranks_M[is_same_M]] = True
        removed += _remove(hits.scores_Qxk, same_Qxk)
    return removed


def remove_near_documents(hits: Hits, positives: Positives, rules: MiningRules) -> Counter[str]:
    """Removes the documents that are too near by the rules, in place.

    Returns:
      How many were removed by which rule.
    """
    least_Q = np.full(len(hits.scores_Qxk), np.inf, np.float32)
    with np.errstate(invalid='ignore'):
        # The result is NaN if any score is missing.
        np.minimum.at(least_Q, positives.queries_P, positives.scores_P)
    counts: Counter[str] = Counter()
    counts['without a score'] += _remove(hits.scores_Qxk, np.isnan(hits.scores_Qxk))
    has_no_score_Q = np.isnan(least_Q)
    if has_no_score_Q.any():
        counts['of a positive without a score'] += _remove(
            hits.scores_Qxk, np.broadcast_to(has_no_score_Q[:, None], hits.scores_Qxk.shape)
        )
    if rules.margin is not None:
        is_near_Qxk = hits.scores_Qxk + np.float32(rules.margin) > least_Q[:, None]
        counts['by --margin'] += _remove(hits.scores_Qxk, is_near_Qxk)
    if rules.max_share < np.inf:
        highest_Q = least_Q - np.abs(least_Q) * np.float32(1 - rules.max_share)
        is_near_Qxk = hits.scores_Qxk > highest_Q[:, None]
        counts['by --max_share'] += _remove(hits.scores_Qxk, is_near_Qxk)
    return counts


def select_negatives(
    model: Hits, bm25: Hits | None, keys_Q: np.ndarray, rules: MiningRules
) -> Negatives:
    """Returns the negatives of each query.

    Args:
      model: candidates in the model's ranking; removed ones have a score of -inf.
      bm25: candidates in BM25's ranking, optional; their scores are the model's.
      keys_Q: uint64, key of each query; with the seed, it determines the random choices, whatever
        the other queries are.
      rules: the rules.
    """
    documents_QxM = np.full((len(keys_Q), rules.negatives), -1)
    scores_QxM = np.full((len(keys_Q), rules.negatives), -np.inf, np.float32)
    for q, key in enumerate(keys_Q.tolist()):
        random = None
        if rules.sampling == 'random':
            random = np.random.default_rng([rules.seed, key])
        chosen: dict[int, float] = {}
        if bm25 and rules.bm25:
            chosen |= _choose(bm25, q, rules, rules.bm25, random, chosen)
        chosen |= _choose(model, q, rules, rules.negatives - len(chosen), random, chosen)
        best_first = sorted(chosen, key=lambda document: (-chosen[document], document))
        documents_QxM[q, : len(chosen)] = best_first
        scores_QxM[q, : len(chosen)] = [chosen[document] for document in best_first]
    return Negatives(documents_QxM, scores_QxM)


def _choose(
    hits: Hits,
    q: int,
    rules: MiningRules,
    count: int,
    random: np.random.Generator | None,
    chosen: dict[int, float],
) -> dict[int, float]:
    """Returns the scores of up to `count` candidates of query q, by index.

    Args:
      hits: candidates in the order of a ranking.
      q: row of the query.
      rules: the rules.
      count: maximum number of candidates.
      random: generator that chooses among the candidates; None takes the first.
      chosen: candidates that are chosen already.
    """
    kept_k = np.flatnonzero(hits.scores_Qxk[q] > -np.inf)[rules.first : rules.last]
    kept_k = kept_k[~np.isin(hits.documents_Qxk[q, kept_k], list(chosen))] if chosen else kept_k
    if random:
        kept_k = random.permutation(kept_k)
    kept_k = kept_k[:count]
    documents = hits.documents_Qxk[q, kept_k].tolist()
    return dict(zip(documents, hits.scores_Qxk[q, kept_k].tolist(), strict=True))


def sort_by_score(hits: Hits) -> Hits:
    """Returns the hits in descending order of their scores, which a reranker may have changed."""
    order_Qxk = np.argsort(-hits.scores_Qxk, axis=1, kind='stable')
    return Hits(
        np.take_along_axis(hits.scores_Qxk, order_Qxk, axis=1),
        np.take_along_axis(hits.documents_Qxk, order_Qxk, axis=1),
    )


def _remove(scores_Qxk: np.ndarray, is_removed_Qxk: np.ndarray) -> int:
    """Sets scores to -inf; returns how many were not."""
    removed = int((is_removed_Qxk & (scores_Qxk != -np.inf)).sum())
    scores_Qxk[is_removed_Qxk] = -np.inf
    return removed
