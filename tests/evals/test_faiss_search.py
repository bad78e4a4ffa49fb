"""FAISS's indexes as an option: what they find, beside exact search."""

import json

import numpy as np
import pytest

from cpt_jax.errors import UserError
from cpt_jax.evals import faiss_search
from cpt_jax.evals.faiss_search import FaissIndex
from cpt_jax.evals.ranking import Hits
from cpt_jax.evals.retrieval import Retrieval
from cpt_jax.evals.searcher import Searcher, recall_against
from tests.evals.test_retrieval import table_embed, write_collection


def test_recall_counts_what_both_found():
    exact = Hits(np.array([[3, 2], [1, 0]], np.float32), np.array([[5, 6], [7, 8]]))
    found = Hits(np.array([[3, -np.inf], [1, 0.5]], np.float32), np.array([[5, 6], [8, 9]]))
    assert recall_against(exact, found) == 0.5 and recall_against(exact, exact) == 1
    nothing = Hits(np.full((2, 2), -np.inf, np.float32), exact.documents_QxK)  # as in a collection whose one document is the query itself
    assert recall_against(nothing, nothing) == 1


@pytest.mark.parametrize('kind', ['flat', 'ivf', 'hnsw'])
def test_an_index_finds_what_exact_search_finds_or_less(tmp_path, kind):
    pytest.importorskip('faiss', reason='an option, installed by requirements-dev.txt')
    rng = np.random.default_rng(0)
    ids, queries = [f'{i:04d}' for i in range(2000)], [f'q{i}' for i in range(30)]
    folder = write_collection(tmp_path / 'c', ids, queries, {q: {ids[i]: 1} for i, q in enumerate(queries)})
    table = {f'{side} {name}': rng.standard_normal(8) for side, names in (('d', ids), ('q', queries)) for name in names}
    one, exact = (
        Retrieval('retrieval/c', folder, k=10, searcher=Searcher(index, baselines=())).run(table_embed(table)) for index in (kind, 'exact')
    )
    recall = one.metrics.pop('recall_vs_exact@10')
    assert exact.settings['index'] == 'exact' and one.settings['index'] == kind and 'faiss' in one.settings
    assert one.metrics.keys() == exact.metrics.keys() and one.baselines == {}
    assert recall == 1 and one.metrics == pytest.approx(exact.metrics) if kind == 'flat' else 0.4 < recall <= 1
    json.dumps(one.settings)


def test_samples_are_drawn_from_all_blocks():
    """So that lists suit a corpus in any order."""
    blocks = [np.arange(start, start + 10)[:, None] for start in (0, 10, 20)]
    assert faiss_search._rows(blocks, np.array([0, 9, 10, 25, 29])).ravel().tolist() == [0, 9, 10, 25, 29]


def test_what_is_not_installed_is_told_at_once(monkeypatch):
    monkeypatch.setattr(faiss_search, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='--index hnsw: FAISS is not installed: pip install faiss-cpu'):
        Searcher('hnsw')
    assert FaissIndex and Searcher('exact')
