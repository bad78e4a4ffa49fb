"""FAISS as an option. What its indexes find is tested in tests/oracles, where it is installed."""

import numpy as np
import pytest

from cpt_jax.runtime.errors import UserError
from cpt_jax.search import faiss_index
from cpt_jax.search.faiss_index import FaissIndex
from cpt_jax.search.ranking import Hits
from cpt_jax.search.searcher import Searcher, recall_against


def test_recall_counts_what_both_found():
    exact = Hits(np.array([[3, 2], [1, 0]], np.float32), np.array([[5, 6], [7, 8]]))
    found = Hits(np.array([[3, -np.inf], [1, 0.5]], np.float32), np.array([[5, 6], [8, 9]]))
    assert recall_against(exact, found) == 0.5 and recall_against(exact, exact) == 1
    # As in a collection whose one document is the query itself.
    nothing = Hits(np.full((2, 2), -np.inf, np.float32), exact.documents_QxK)
    assert recall_against(nothing, nothing) == 1


def test_samples_are_drawn_from_all_blocks():
    """So that lists suit a corpus in any order."""
    blocks = [np.arange(start, start + 10)[:, None] for start in (0, 10, 20)]
    assert faiss_index._rows(blocks, np.array([0, 9, 10, 25, 29])).ravel().tolist() == [
        0,
        9,
        10,
        25,
        29,
    ]


def test_what_is_not_installed_is_told_at_once(monkeypatch):
    monkeypatch.setattr(faiss_index, 'find_spec', lambda name: None)
    with pytest.raises(
        UserError, match='--index hnsw: FAISS is not installed: pip install faiss-cpu'
    ):
        Searcher('hnsw')
    assert FaissIndex and Searcher('exact')
