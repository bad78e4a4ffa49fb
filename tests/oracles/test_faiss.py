"""Tests of FAISS's indexes against exact search."""

import json

import numpy as np
import pytest

from cpt_jax.evals.tasks.retrieval import Retrieval, RetrievalOptions
from tests.evals.tasks.test_retrieval import make_table_embed, write_collection


@pytest.mark.parametrize('kind', ['flat', 'ivf', 'hnsw'])
def test_index_finds_the_results_of_exact_search(tmp_path, kind):
    rng = np.random.default_rng(0)
    ids = [f'{i:04d}' for i in range(2000)]
    queries = [f'q{i}' for i in range(30)]
    judgements = {query: {ids[i]: 1} for i, query in enumerate(queries)}
    folder = write_collection(tmp_path / 'c', ids, queries, judgements)
    vectors = {f'd {name}': rng.standard_normal(8) for name in ids}
    vectors |= {f'q {name}': rng.standard_normal(8) for name in queries}

    def evaluate(index):
        options = RetrievalOptions(k=10, index=index, baselines=())
        return Retrieval('retrieval/c', folder, options).run(make_table_embed(vectors))

    approximate = evaluate(kind)
    exact = evaluate('exact')
    recall = approximate.metrics.pop('recall_vs_exact@10')
    assert exact.settings['index'] == 'exact'
    assert approximate.settings['index'] == kind
    assert 'faiss' in approximate.settings
    assert approximate.metrics.keys() == exact.metrics.keys()
    assert approximate.baselines == {}
    if kind == 'flat':
        assert recall == 1
        assert approximate.metrics == pytest.approx(exact.metrics)
    else:
        assert 0.4 < recall <= 1
    json.dumps(approximate.settings)  # settings are stored as JSON
