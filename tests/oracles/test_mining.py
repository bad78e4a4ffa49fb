"""Mining against `mine_hard_negatives` of sentence-transformers, on the same vectors."""

import numpy as np
import pytest
import torch

from cpt_jax.data.pairs import Pair
from cpt_jax.mining.miner import Miner, ModelVectors
from cpt_jax.mining.pair_index import index_pairs
from cpt_jax.mining.pairs_to_mine import PairsToMine
from cpt_jax.mining.rules import MiningRules
from cpt_jax.mining.stored_vectors import StoredVectors
from tests.mining.test_miner import check_groups_of_queries, make_data

QUERIES, DOCUMENTS, WIDTH = 150, 400, 6


class TableModel:
    """The part of a SentenceTransformer that the function uses, with vectors from a table."""

    device = torch.device('cpu')

    def __init__(self):
        random = np.random.default_rng(0)
        names = [f'q{i}' for i in range(QUERIES)] + [f'd{i}' for i in range(DOCUMENTS)]
        vectors = random.standard_normal((len(names), WIDTH)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        self.vectors = dict(zip(names, vectors, strict=True))

    def encode(self, texts, **_):
        return np.stack([self.vectors[text] for text in texts])

    encode_query = encode_document = encode

    def similarity(self, a, b):
        return torch.as_tensor(a) @ torch.as_tensor(b).T

    def similarity_pairwise(self, a, b):
        return (torch.as_tensor(a) * torch.as_tensor(b)).sum(1)


@pytest.mark.parametrize(
    ('theirs', 'ours'),
    [
        ({'range_min': 10, 'range_max': 100}, {'first': 10, 'last': 100}),
        ({'range_max': 25, 'relative_margin': 0.05}, {'last': 25, 'max_share': 0.95}),
        ({'range_min': 3, 'range_max': 30, 'absolute_margin': 0.2}, {'last': 30, 'margin': 0.2}),
        # Many queries have fewer candidates than negatives.
        ({'range_min': 1, 'range_max': 20, 'relative_margin': 0.2}, {'last': 20, 'max_share': 0.8}),
    ],
)
def test_negatives_are_those_of_sentence_transformers(tmp_path, theirs, ours):
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    model = TableModel()
    random = np.random.default_rng(1)
    # Of several positives of a query, some are outside its nearest documents, and some scores of
    # positives are negative.
    pairs = []
    for i in range(QUERIES):
        query = model.vectors[f'q{i}']
        scores = np.array([query @ model.vectors[f'd{j}'] for j in range(DOCUMENTS)])
        order = np.argsort(-scores)
        ranks = {*random.integers(0, 4, 1 + i % 3)}
        if i % 4 == 0:
            ranks |= {*random.integers(0, DOCUMENTS, 2)}
        for rank in ranks:
            pairs.append(Pair(f'q{i}', f'd{order[rank]}', id=f'{i}/{rank}'))
    corpus = [f'd{i}' for i in range(DOCUMENTS)]
    columns = {'x': [pair.x for pair in pairs], 'y': [pair.y for pair in pairs]}
    found = mine_hard_negatives(
        Dataset.from_dict(columns),
        model,
        corpus=corpus,
        num_negatives=5,
        output_scores=True,
        verbose=False,
        **theirs,
    )
    expected: dict[tuple[str, str], list] = {}
    for row in found:
        expected.setdefault((row['x'], row['y']), []).append((row['negative'], *row['scores']))

    settings = {'first': theirs.get('range_min', 0), 'max_share': np.inf} | ours
    rules = MiningRules(negatives=5, equal_texts='stripped', **settings)
    index = index_pairs(PairsToMine(pairs, lambda: corpus, ()), tmp_path, 'stripped')
    texts = [table.read_texts(range(table.size)) for table in index[:2]]
    vectors = [StoredVectors([model.encode(table)]) for table in texts]
    mined = Miner(index, rules, ModelVectors(*vectors)).mine(tmp_path)
    for i, pair in enumerate(pairs):
        documents = mined.negatives.documents_QxM[index.queries_N[i]]
        scores = mined.negatives.scores_QxM[index.queries_N[i]]
        rows = expected.get((pair.x, pair.y), [])
        assert [texts[1][j] for j in documents if j >= 0] == [row[0] for row in rows]
        np.testing.assert_allclose(scores[: len(rows)], [row[2] for row in rows], atol=1e-6)
        if rows:
            assert abs(mined.positive_scores_N[i] - rows[0][1]) < 1e-6
    assert len(expected) > QUERIES / 4


@pytest.mark.parametrize('index', ['hnsw', 'ivf'])
def test_groups_of_queries_give_the_negatives_of_one_group(tmp_path, monkeypatch, index):
    check_groups_of_queries(tmp_path, make_data(), monkeypatch, index)
