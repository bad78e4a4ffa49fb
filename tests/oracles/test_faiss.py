"""FAISS's indexes, compared with exact search."""

import json

import numpy as np
import pytest

from cpt_jax.evals.tasks.retrieval import Retrieval, RetrievalOptions
from tests.evals.tasks.test_retrieval import table_embed, write_collection


@pytest.mark.parametrize('kind', ['flat', 'ivf', 'hnsw'])
def test_an_index_finds_what_exact_search_finds_or_less(tmp_path, kind):
    rng = np.random.default_rng(0)
    ids, queries = [f'{i:04d}' for i in range(2000)], [f'q{i}' for i in range(30)]
    folder = write_collection(
        tmp_path / 'c', ids, queries, {q: {ids[i]: 1} for i, q in enumerate(queries)}
    )
    table = {
        f'{side} {name}': rng.standard_normal(8)
        for side, names in (('d', ids), ('q', queries))
        for name in names
    }
    one, exact = (
        Retrieval('retrieval/c', folder, RetrievalOptions(k=10, index=index, baselines=())).run(
            table_embed(table)
        )
        for index in (kind, 'exact')
    )
    recall = one.metrics.pop('recall_vs_exact@10')
    assert (
        exact.settings['index'] == 'exact'
        and one.settings['index'] == kind
        and 'faiss' in one.settings
    )
    assert one.metrics.keys() == exact.metrics.keys() and one.baselines == {}
    assert (
        recall == 1 and one.metrics == pytest.approx(exact.metrics)
        if kind == 'flat'
        else 0.4 < recall <= 1
    )
    json.dumps(one.settings)
