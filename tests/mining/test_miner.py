"""Mining of given vectors: known positives and their equals, resume, reranker scores, BM25."""

import json
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from cpt_jax.data.pairs import Pair
from cpt_jax.data.sources.jsonl import JsonlSource
from cpt_jax.mining import miner, stored_vectors
from cpt_jax.mining.mined_rows import write_rows
from cpt_jax.mining.miner import Miner, ModelVectors
from cpt_jax.mining.mining_report import format_report
from cpt_jax.mining.pair_index import index_pairs
from cpt_jax.mining.pairs_to_mine import PairsToMine
from cpt_jax.mining.reranker_scores import read_reranker_scores
from cpt_jax.mining.rules import MiningRules
from cpt_jax.mining.stored_vectors import StoredVectors, store_vectors
from cpt_jax.runtime.errors import UserError
from cpt_jax.search.bm25 import Bm25
from tests.conftest import sentences

WIDTH = 8
# Queries 'a' and 'A ' are equal, and so are the documents of three pairs.
PAIRS = [
    Pair('what is a list', 'An ordered row', id='p0'),
    Pair('What  is a list', 'A sequence', id='p1'),
    Pair('error', 'An exception', id='p2'),
    Pair('an  exception', 'a  SEQUENCE', id='p3'),
    *(Pair(f'query {i}', f'document {i}', id=f'q{i}') for i in range(20)),
]
CORPUS = ['a sequence', *(f'other {i}' for i in range(40)), 'other 3', ' ']


def embed(texts, side):
    """Returns unit vectors that depend on the text alone, whatever its case and white space."""
    vectors = []
    for text in texts:
        seed = [*' '.join(text.casefold().split()).encode(), side == 'x']
        vectors.append(np.random.default_rng(seed).standard_normal(WIDTH))
    vectors = np.array(vectors, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_data() -> PairsToMine:
    return PairsToMine(PAIRS, lambda: CORPUS, ())


@pytest.fixture
def data():
    return make_data()


class Mining:
    """A mining of PAIRS in a folder."""

    def __init__(self, folder: Path, data: PairsToMine, rules: MiningRules, **model):
        folder.mkdir(exist_ok=True)
        self.rules = rules
        self.index = index_pairs(data, folder, rules.equal_texts)
        texts = [table.read_texts(range(table.size)) for table in self.index[:2]]
        vectors = [embed(found, side) for found, side in zip(texts, 'xy', strict=True)]
        self.documents = texts[1]
        stored = [StoredVectors([part[:40], part[40:]], 40) for part in vectors]
        self.model = ModelVectors(*stored, **model)
        self.folder = folder
        self.data = data

    def mine(self, **given):
        return Miner(self.index, self.rules, self.model, **given).mine(self.folder)

    def get_negatives(self, mined, pair: int) -> list[str]:
        found = mined.negatives.documents_QxM[self.index.queries_N[pair]]
        return [self.documents[document] for document in found if document >= 0]


def all_rules(**given) -> MiningRules:
    """Returns rules by which every document that is no positive is a negative."""
    return MiningRules(0, 63, 63, np.inf, **given)


def test_no_negative_equals_a_positive_the_query_or_another_negative(tmp_path, data):
    mining = Mining(tmp_path, data, all_rules())
    mined = mining.mine()
    # 23 distinct y's, one of which is in the corpus, and 40 other texts that are not blank.
    assert len(mining.documents) == 63
    negatives = {pair: mining.get_negatives(mined, pair) for pair in range(4)}
    assert negatives[0] == negatives[1]  # their x are equal, so they have the same positives
    for pair, excluded in [(0, {'An ordered row', 'a sequence'}), (2, {'An exception'})]:
        assert sorted(negatives[pair]) == sorted({*mining.documents} - excluded)
    # 'An exception' is the query of the last one.
    assert sorted(negatives[3]) == sorted({*mining.documents} - {'a sequence', 'An exception'})


def test_with_stripped_texts_only_the_positives_are_left_out(tmp_path, data):
    mining = Mining(tmp_path, data, all_rules(equal_texts='stripped'))
    mined = mining.mine()
    assert {'a sequence', 'a  SEQUENCE'} < {*mining.get_negatives(mined, 1)}
    assert 'A sequence' not in mining.get_negatives(mined, 1)
    assert 'An exception' in mining.get_negatives(mined, 3)


def test_groups_of_queries_give_the_negatives_of_one_group(tmp_path, data, monkeypatch):
    check_groups_of_queries(tmp_path, data, monkeypatch, 'exact')


def check_groups_of_queries(tmp_path, data, monkeypatch, index: str) -> None:
    rules = MiningRules(2, 30, 4, 1.2, sampling='random', seed=3)
    whole = Mining(tmp_path / 'whole', data, rules).mine()
    monkeypatch.setattr(miner, 'MOST_QUERIES', 7)
    parts = Mining(tmp_path / 'parts', data, rules, index=index).mine()
    assert len(list(tmp_path.glob('parts/selected-*/*.npz'))) == 4
    np.testing.assert_array_equal(parts.negatives.documents_QxM, whole.negatives.documents_QxM)
    np.testing.assert_array_equal(parts.positive_scores_N, whole.positive_scores_N)
    assert parts.counts == whole.counts


def test_an_interrupted_mining_searches_only_the_missing_groups(tmp_path, data, monkeypatch):
    monkeypatch.setattr(miner, 'MOST_QUERIES', 7)
    rules = MiningRules(2, 30, 4)
    whole = Mining(tmp_path / 'whole', data, rules).mine()
    mining = Mining(tmp_path / 'parts', data, rules)
    search = ModelVectors.search
    calls = []

    def search_until_killed(self, rows, k, progress):
        calls.append(rows)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return search(self, rows, k, progress)

    monkeypatch.setattr(ModelVectors, 'search', search_until_killed)
    with pytest.raises(KeyboardInterrupt):
        mining.mine()
    resumed = Mining(tmp_path / 'parts', data, rules).mine()
    assert calls[2:] == [range(14, 21), range(14, 21), range(21, 23)]
    np.testing.assert_array_equal(resumed.negatives.documents_QxM, whole.negatives.documents_QxM)
    Mining(tmp_path / 'parts', data, MiningRules(2, 30, 5)).mine()
    assert len(calls) == 9  # other rules have other results


def test_missing_vectors_are_embedded_after_an_interruption(tmp_path, data, monkeypatch):
    monkeypatch.setattr(stored_vectors, 'SHARD_SIZE', 25)
    table = index_pairs(data, tmp_path, 'normalized').documents
    embedded = []

    class Model:
        model_name, settings, width = 'm', {}, WIDTH

    def embed_until_killed(texts, side):
        if len(embedded) == 2:
            raise KeyboardInterrupt
        embedded.append(len(texts))
        return embed(texts, side)

    with pytest.raises(KeyboardInterrupt):
        store_vectors(tmp_path / 'v', table, 'y', Model, embed_until_killed)
    stored = store_vectors(tmp_path / 'v', table, 'y', Model, lambda *given: embed(*given))
    assert embedded == [25, 25] and [len(shard) for shard in stored.shards] == [25, 25, 13]
    expected = embed(table.read_texts(range(63)), 'y')
    np.testing.assert_array_equal(np.concatenate(stored.shards), expected)
    indices = np.array([62, 0, 24, 25, 25])
    np.testing.assert_array_equal(stored._replace(shard_size=25).take(indices), expected[indices])
    Model.model_name = 'other'
    with pytest.raises(UserError, match='holds other vectors'):
        store_vectors(tmp_path / 'v', table, 'y', Model, embed)


def test_rows_are_read_by_training_and_the_report_shows_them(tmp_path, data):
    data = data._replace(read_fields=lambda index: {'file': f'f{index}', 'other': 1})
    mining = Mining(tmp_path, data, MiningRules(0, 30, 4))
    mined = mining.mine()
    path = tmp_path / 'rows.jsonl'
    assert write_rows(path, data, mining.index, mined, min_negatives=0) == len(PAIRS)
    source = JsonlSource(str(path), 'all')
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for i, (pair, row) in enumerate(zip(PAIRS, rows, strict=True)):
        assert source[i][:4] == (*pair[:2], tuple(mining.get_negatives(mined, i)), pair.id)
        assert row['file'] == f'f{i}' and 'other' not in row
        texts = [pair.y, *source[i].negatives]
        expected = embed([pair.x], 'x')[0] @ embed(texts, 'y').T
        np.testing.assert_allclose(row['scores'], expected, atol=1e-6)
        assert all(score < row['scores'][0] for score in row['scores'][1:])
    enough = sum(len(row['negatives']) >= 3 for row in rows)
    assert 0 < enough < len(PAIRS)
    assert write_rows(path, data, mining.index, mined, min_negatives=3) == enough
    report = format_report(data, mining.index, mined, mining.rules, 0)
    assert '24 pairs of 23 queries, 63 documents' in report
    assert report.count('\n  x  ') == 10 and 'median' in report and '#' in report


def test_scores_of_a_reranker_replace_those_of_the_model(tmp_path, data):
    rules = MiningRules(0, 20, 3)
    mining = Mining(tmp_path, data, rules)
    first = mining.mine()
    path = tmp_path / 'scores.jsonl'
    random = np.random.default_rng(0)
    scores = {}
    with path.open('w') as file:
        for i, pair in enumerate(PAIRS[:-1]):
            texts = [pair.y, *sorted({*mining.documents} - {pair.y})[i : i + 9]]
            row_scores = [1.0, *random.uniform(0, 1.2, len(texts) - 1)]
            scores[i] = dict(zip(texts, row_scores, strict=True))
            row = {'x': pair.x, 'y': pair.y, 'negatives': texts[1:], 'scores': row_scores}
            file.write(json.dumps(row) + '\n')
    reranker = read_reranker_scores(epath.Path(path), rules.equal_texts)
    mined = mining.mine(reranker=reranker)
    assert (mined.negatives.documents_QxM != first.negatives.documents_QxM).any()
    for i in range(4, len(PAIRS) - 1):
        allowed = {text: score for text, score in scores[i].items() if score <= 0.95}
        hits = mining.model.documents.take(np.arange(63)) @ embed([PAIRS[i].x], 'x')[0]
        nearest = [mining.documents[j] for j in np.argsort(-hits, kind='stable')[:22]]
        expected = sorted({*allowed} & {*nearest}, key=lambda text: -allowed[text])[:3]
        assert mining.get_negatives(mined, i) == expected
    # The last positive has no score, so nothing is known about its candidates.
    assert mining.get_negatives(mined, len(PAIRS) - 1) == []
    assert np.isnan(mined.positive_scores_N[-1])


@pytest.mark.parametrize(
    ('row', 'message'),
    [
        ({'scores': [1.0]}, ':2: "scores" has 1 numbers and must have 2'),
        ({'scores': None}, ':2: "scores" must be a list of numbers'),
        ({'negatives': 'b'}, ':2: "negatives" must be a list of texts'),
    ],
)
def test_wrong_reranker_rows_are_one_line_errors(tmp_path, row, message):
    good = {'x': 'q', 'y': 'a', 'negatives': ['b'], 'scores': [1, 0.5]}
    path = tmp_path / 'scores.jsonl'
    path.write_text(f'{json.dumps(good)}\n{json.dumps(good | row)}\n')
    with pytest.raises(UserError, match=message):
        read_reranker_scores(epath.Path(path), 'normalized')


def test_negatives_of_bm25_alone_share_a_word_with_the_query(tmp_path):
    texts = sentences(60, seed=1, words=6)
    pairs = [Pair(f'{texts[i]} ?', texts[i], id=str(i)) for i in range(20)]
    data = PairsToMine(pairs, lambda: texts, ())
    mining = Mining(tmp_path, data, MiningRules(0, 20, 3, np.inf, bm25=3))
    bm25 = Bm25(mining.documents)
    mined = Miner(mining.index, mining.rules, None, bm25).mine(tmp_path)
    for i, pair in enumerate(pairs):
        scores = bm25.compute_scores(pair.x)
        best = [j for j in np.argsort(-scores, kind='stable') if scores[j] > 0]
        best = [mining.documents[j] for j in best if mining.documents[j] != pair.y]
        assert mining.get_negatives(mined, i) == best[:3]
    row_path = tmp_path / 'rows.jsonl'
    write_rows(row_path, data, mining.index, mined, 0)
    assert 'scores' not in json.loads(row_path.read_text().splitlines()[0])
    mixed = Mining(tmp_path, data, MiningRules(0, 20, 3, np.inf, bm25=1))
    found = mixed.mine(bm25=bm25)
    for i in range(len(pairs)):
        first = mining.get_negatives(mined, i)[:1]
        assert {*first} <= {*mixed.get_negatives(found, i)}
