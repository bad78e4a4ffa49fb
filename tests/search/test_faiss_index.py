"""FAISS is optional. The results of its indexes are tested in tests/oracles, which need FAISS."""

import numpy as np
import pytest

from cpt_jax.runtime.errors import UserError
from cpt_jax.search import faiss_index
from cpt_jax.search.faiss_index import FaissIndex
from cpt_jax.search.ranking import Hits
from cpt_jax.search.searcher import Searcher, compute_search_recalls


def test_recall_is_the_fraction_of_documents_that_both_find():
    exact = Hits(np.array([[3, 2], [1, 0]], np.float32), np.array([[5, 6], [7, 8]]))
    found = Hits(np.array([[3, -np.inf], [1, 0.5]], np.float32), np.array([[5, 6], [8, 9]]))
    assert compute_search_recalls(exact, found).tolist() == [0.5, 0.5]
    assert compute_search_recalls(exact, exact).tolist() == [1, 1]
    # For example, the only document of the collection is the query itself.
    no_hits = Hits(np.full((2, 2), -np.inf, np.float32), exact.documents_Qxk)
    assert compute_search_recalls(no_hits, no_hits).tolist() == [1, 1]


def test_rows_are_taken_from_all_blocks():
    """Training vectors of an inverted file must come from the whole corpus."""
    indices = [0, 9, 10, 25, 29]
    blocks = [np.arange(start, start + 10)[:, None] for start in (0, 10, 20)]
    rows = faiss_index._get_rows_from_blocks(blocks, np.array(indices))
    assert rows.ravel().tolist() == indices


def test_missing_faiss_is_an_error_before_the_search(monkeypatch):
    monkeypatch.setattr(faiss_index, 'find_spec', lambda name: None)
    with pytest.raises(
        UserError, match='--index hnsw: FAISS is not installed: pip install faiss-cpu'
    ):
        Searcher('hnsw')
    assert FaissIndex and Searcher('exact')
