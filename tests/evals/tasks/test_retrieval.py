import json
import math

import numpy as np
import pytest
import pytrec_eval
from etils import epath

from cpt_jax.evals.run import run_tasks
from cpt_jax.evals.task import Context
from cpt_jax.evals.tasks.retrieval import Retrieval, RetrievalOptions, find_retrieval, score_run
from cpt_jax.search import searcher
from cpt_jax.search.bm25 import make_random_embed


def write_collection(folder, documents, queries, qrels):
    """Writes a BEIR collection. Texts are made of ids, so an embedding function can be a table."""
    (folder / 'qrels').mkdir(parents=True)
    (folder / 'corpus.jsonl').write_text(
        ''.join(json.dumps({'_id': d, 'title': '', 'text': f'd {d}'}) + '\n' for d in documents)
    )
    (folder / 'queries.jsonl').write_text(
        ''.join(json.dumps({'_id': q, 'text': f'q {q}'}) + '\n' for q in queries)
    )
    lines = [f'{q}\t{d}\t{grade}\n' for q, grades in qrels.items() for d, grade in grades.items()]
    (folder / 'qrels' / 'test.tsv').write_text(''.join(lines))
    return epath.Path(folder)


def make_table_embed(table):
    return lambda texts, side: np.stack([table[text] for text in texts]).astype(np.float32)


def make_small_vectors(ids, prefix, seed, width=4):
    """Returns vectors of small integers: products are exact in float32, and there are many ties."""
    vectors = np.random.default_rng(seed).integers(-1, 2, (len(ids), width))
    return {f'{prefix} {name}': vector for name, vector in zip(ids, vectors, strict=True)}


def compute_reference(run, qrels, k):
    """Returns the three metrics from their definitions. Ties are sorted by descending id."""
    totals = np.zeros(3)
    for query, grades in qrels.items():
        order = sorted(run.get(query, {}), key=lambda d: (run[query][d], d), reverse=True)
        gains = [max(grades.get(d, 0), 0) for d in order]
        ideal = sorted((g for g in grades.values() if g > 0), reverse=True)
        dcg, best = (
            sum(g / math.log2(i + 2) for i, g in enumerate(values[:10]))
            for values in (gains, ideal)
        )
        first = next((i + 1 for i, g in enumerate(gains) if g > 0), math.inf)
        totals += [
            dcg / best,
            1 / first if first <= 10 else 0,
            sum(g > 0 for g in gains[:k]) / len(ideal),
        ]
    return totals / len(qrels)


@pytest.mark.parametrize('seed', range(5))
def test_scores_match_the_definitions(seed):
    rng = np.random.default_rng(seed)
    documents = [f'{i:03d}' for i in range(40)]
    qrels, run = {}, {}
    for query in map(str, range(12)):
        judged = rng.choice(documents, 6, replace=False)
        qrels[query] = dict(
            zip(judged.tolist(), [1, 0, *rng.integers(0, 4, 4).tolist()], strict=True)
        )
        if rng.random() < 0.8:  # the other queries are missing in the run, or have no documents
            run[query] = {
                d: float(rng.integers(0, 4))
                for d in rng.choice(documents, 25, replace=False).tolist()
            }
        elif rng.random() < 0.5:
            run[query] = {}
    found = score_run(run, qrels, 20)
    np.testing.assert_allclose(list(found.values()), compute_reference(run, qrels, 20), rtol=1e-12)
    assert list(found) == ['ndcg@10', 'mrr@10', 'recall@20']


def test_mrr_counts_ranks_up_to_10():
    run = {'q': {f'{i:02d}': float(-i) for i in range(1, 21)}}
    assert score_run(run, {'q': {'10': 1}}, 100)['mrr@10'] == pytest.approx(0.1)
    assert score_run(run, {'q': {'11': 1}}, 100)['mrr@10'] == 0


@pytest.mark.parametrize(('documents', 'k'), [(30, 10), (30, 1000), (200, 12)])
def test_task_matches_trec_eval_on_the_whole_ranking(tmp_path, documents, k):
    """Includes ties at the cutoff: trec_eval would rank the removed documents below it."""
    rng = np.random.default_rng(documents)
    ids = [f'{i:03d}' for i in range(documents)]
    queries = ['007', '7', 'Ж', 'none relevant']
    qrels = {
        q: {
            d: int(g)
            for d, g in zip(rng.choice(ids, 8, False), [1, 1, 2, 3, 0, 1, 2, 0], strict=True)
        }
        for q in queries[:3]
    }
    qrels['none relevant'] = {ids[0]: 0}
    folder = write_collection(tmp_path / 'c', ids, queries, qrels)
    table = make_small_vectors(ids, 'd', 0) | make_small_vectors(queries, 'q', 1)
    result = Retrieval('retrieval/c', folder, RetrievalOptions(k=k)).run(make_table_embed(table))

    whole = {
        q: {d: float(table[f'q {q}'] @ table[f'd {d}']) for d in ids if d != q} for q in queries[:3]
    }
    judged = {q: qrels[q] for q in queries[:3]}
    per_query = pytrec_eval.RelevanceEvaluator(judged, {'ndcg_cut.10', f'recall.{k}'}).evaluate(
        whole
    )
    assert result.metrics['ndcg@10'] == pytest.approx(
        np.mean([row['ndcg_cut_10'] for row in per_query.values()])
    )
    assert result.metrics[f'recall@{k}'] == pytest.approx(
        np.mean([row[f'recall_{k}'] for row in per_query.values()])
    )
    assert list(result.metrics.values()) == pytest.approx(compute_reference(whole, judged, k))
    assert result.n == 3 and result.settings['queries_without_positives'] == 1
    assert result.main_score == result.metrics['ndcg@10']


def test_one_query_with_three_documents_has_the_expected_scores(tmp_path):
    folder = write_collection(tmp_path / 'c', ['a', 'b', 'c'], ['q'], {'q': {'b': 1}})
    table = {'q q': [1, 0], 'd a': [1, 0], 'd b': [0.5, 0], 'd c': [0, 1]}
    result = Retrieval('retrieval/c', folder, RetrievalOptions(k=1000)).run(make_table_embed(table))
    assert result.metrics == pytest.approx(
        {'ndcg@10': 1 / math.log2(3), 'mrr@10': 0.5, 'recall@1000': 1.0}
    )
    assert [found.text for found in result.examples[0].model.found] == ['d a', 'd b', 'd c']
    assert [found.right for found in result.examples[0].model.found] == [False, True, False]
    assert result.examples[0].model.rank == 2 and result.examples[0].right == 'd b'


def test_vectors_of_other_lengths_are_ranked_by_dot_product(tmp_path):
    """The long vector wins, although its cosine with the query is smaller."""
    folder = write_collection(tmp_path / 'c', ['near', 'long'], ['q'], {'q': {'long': 1}})
    embed = make_table_embed({'q q': [2, 0], 'd near': [0.9, 0.1], 'd long': [3, 3]})
    result = Retrieval('retrieval/c', folder, RetrievalOptions()).run(embed)
    assert result.metrics['ndcg@10'] == 1
    assert result.settings['similarity'] == 'dot product of vectors of any length, float32'


def test_document_with_the_id_of_the_query_is_removed(tmp_path):
    ids = [f'{i:02d}' for i in range(11)]
    folder = write_collection(tmp_path / 'c', ids, ['03'], {'03': {'10': 1, '03': 1}})
    table = {'q 03': [1.0], **{f'd {name}': [1 - int(name) / 100] for name in ids}} | {
        'd 03': [2.0]
    }
    result = Retrieval('retrieval/c', folder, RetrievalOptions(k=10)).run(make_table_embed(table))
    # Without '03', which was first, '10' has rank 10. '03' still counts in the ideal ranking.
    assert result.metrics['recall@10'] == 0.5
    assert result.metrics['mrr@10'] == pytest.approx(0.1)
    assert result.examples[0].model.rank == 10


def test_results_have_a_warning_about_documents_that_are_missing(tmp_path, capsys):
    qrels = {'p': {'gone': 1}, 'q': {'b': 1}}
    folder = write_collection(tmp_path / 'c', ['a', 'b'], ['p', 'q'], qrels)
    embed = make_table_embed({'q p': [1.0], 'q q': [1.0], 'd a': [1.0], 'd b': [2.0]})
    task = Retrieval('retrieval/c', folder)
    row = run_tasks(embed, 'm', {}, [task], epath.Path(tmp_path))['tasks']['retrieval/c']
    assert row['main_score'] == 0.5
    (warning,) = row['warnings']
    assert '1 of 2 relevant documents' in warning and '1 of 2 queries have none' in warning
    assert f'retrieval/c: WARNING: {warning}' in capsys.readouterr().out


def test_oracle_scores_1_and_equal_vectors_rank_by_id(tmp_path):
    ids = [f'{i:03d}' for i in range(50)]
    folder = write_collection(
        tmp_path / 'c', ids, [f'q{i}' for i in range(50)], {f'q{i}': {ids[i]: 1} for i in range(50)}
    )
    eye = np.eye(50, dtype=np.float32)
    result = Retrieval('retrieval/c', folder).run(
        lambda texts, side: eye[[int(text.strip('dq ')) for text in texts]]
    )
    assert set(result.metrics.values()) == {1.0}
    same = Retrieval('retrieval/c', folder).run(
        lambda texts, side: np.ones((len(texts), 3), np.float32)
    )
    assert same.metrics['mrr@10'] == pytest.approx(sum(1 / rank for rank in range(1, 11)) / 50)


def test_baselines_rank_the_same_documents(tmp_path):
    ids = [str(i) for i in range(300)]
    folder = write_collection(
        tmp_path / 'c',
        ids,
        ids[:100],
        {name: {ids[i + 100]: 1} for i, name in enumerate(ids[:100])},
    )
    result = Retrieval('retrieval/c', folder, RetrievalOptions(k=30)).run(make_random_embed(1))
    assert (
        result.metrics.keys()
        == result.baselines['bm25'].keys()
        == result.baselines['random'].keys()
    )
    # The tolerance is two standard deviations of 100 draws.
    assert result.baselines['random']['recall@30'] == pytest.approx(30 / 299, abs=0.06)
    assert result.baseline_values.keys() == result.baselines.keys()
    for name, values in result.baseline_values.items():  # their intervals are drawn from these
        means = {metric: values_Q.mean() for metric, values_Q in values.items()}
        assert means == pytest.approx(result.baselines[name])
    # The only document with a query's number has the query's id, so it is removed.
    assert result.baselines['bm25']['recall@30'] == 0
    assert {'protocol', 'k', 'split', 'data', 'libraries', 'bm25', 'seed'} <= result.settings.keys()
    json.dumps(result.settings)


def test_folders_are_found_with_their_splits(tmp_path):
    """MS MARCO is scored by MRR@10 on dev queries. CQADupStack is a folder of folders."""
    for folder in ('scifact', 'msmarco', 'cqadupstack/tex'):
        write_collection(tmp_path / 'retrieval' / folder, ['a', 'b'], ['q'], {'q': {'a': 1}})
    (tmp_path / 'retrieval/msmarco/qrels/test.tsv').rename(
        tmp_path / 'retrieval/msmarco/qrels/dev.tsv'
    )
    tasks = find_retrieval(epath.Path(tmp_path), RetrievalOptions(), Context())
    assert {name: task.split for name, task in tasks.items()} == {
        'retrieval/cqadupstack/tex': 'test',
        'retrieval/msmarco': 'dev',
        'retrieval/scifact': 'test',
    }
    train = find_retrieval(epath.Path(tmp_path), RetrievalOptions(split='train'), Context())
    assert {task.split for task in train.values()} == {'train'}
    assert (
        tasks['retrieval/msmarco']
        .run(make_table_embed({'q q': [1], 'd a': [1], 'd b': [2]}))
        .metric
        == 'mrr@10'
    )


def test_baselines_can_be_left_out(tmp_path, monkeypatch, capsys):
    folder = write_collection(tmp_path / 'c', ['a', 'b'], ['q'], {'q': {'a': 1}})
    table = make_table_embed({'q q': [1], 'd a': [1], 'd b': [2]})
    monkeypatch.setattr(searcher, 'BM25_DOCUMENTS', 1)
    result = Retrieval('retrieval/c', folder).run(table)
    assert [*result.baselines] == ['random']
    assert 'BM25 is left out: 2 documents' in capsys.readouterr().out
    assert result.examples[0].bm25 == ([], None) and result.examples[0].model.rank == 2
    assert (
        Retrieval('retrieval/c', folder, RetrievalOptions(baselines=())).run(table).baselines == {}
    )


@pytest.mark.parametrize('precision', ['int8', 'binary'])
def test_quantized_documents_are_compared_with_exact_search(tmp_path, precision):
    rng = np.random.default_rng(0)
    ids, queries = [f'{i:03d}' for i in range(60)], [f'q{i}' for i in range(12)]
    vectors = {f'd {name}': rng.standard_normal(16) for name in ids}
    vectors |= {f'q {query}': vectors[f'd {ids[i]}'] for i, query in enumerate(queries)}
    judgements = {query: {ids[i]: 1} for i, query in enumerate(queries)}
    folder = write_collection(tmp_path / 'c', ids, queries, judgements)
    options = RetrievalOptions(k=10, precision=precision, baselines=())
    result = Retrieval('retrieval/c', folder, options).run(make_table_embed(vectors))
    assert result.metrics['ndcg@10'] > 0.9
    recall = result.metrics['recall_vs_exact@10']
    assert result.item_scores.values['recall_vs_exact@10'].mean() == pytest.approx(recall)
    assert recall > 0.95 if precision == 'int8' else 0.4 < recall < 0.95
    # Published scores, which have the index 'exact', are not shown beside it.
    assert result.settings['index'] == precision
