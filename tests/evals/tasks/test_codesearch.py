import gzip
import json

import numpy as np
import pytest
from etils import epath

from cpt_jax.benchmark_data.code_pairs import CodePairs, load_file_pairs, load_python_source_pairs
from cpt_jax.evals.store.results import label_metric
from cpt_jax.evals.task import Context
from cpt_jax.evals.tasks.codesearch import (
    CodeSearch,
    CodeSearchOptions,
    compute_rank_metrics,
    find_code_search,
    shuffle_into_chunks,
)
from cpt_jax.runtime.errors import UserError
from cpt_jax.search.bm25 import make_random_embed


def make_task(total, candidates=1000):
    texts = [f'name{i}' for i in range(total)]
    return with_options(
        lambda: CodePairs(texts, list(texts), {'data': 'made'}), candidates=candidates
    )


def with_options(load, **options):
    return CodeSearch('codesearch/made', load, lambda: 'made', CodeSearchOptions(**options))


def find(folder, **options):
    return find_code_search(folder, CodeSearchOptions(**options), Context())


def oracle(texts, side):
    """Returns a random unit vector for each name, the same for both sides."""
    vectors_NxD = np.random.default_rng(5).standard_normal((2500, 16), np.float32)
    vectors_NxD /= np.linalg.norm(vectors_NxD, axis=1, keepdims=True)
    return vectors_NxD[[int(text.removeprefix('name')) for text in texts]]


def chunk_as_codebert(total, size):
    """Returns the chunks of process_data.py: np.random.seed(0), shuffle, chunks in order, stop at
    the first incomplete one.
    """
    order = np.arange(total)
    np.random.seed(0)
    np.random.shuffle(order)
    found = []
    for start in range(0, total, size):
        if len(order[start : start + size]) < size:
            break
        found.append(order[start : start + size].tolist())
    return found


def compute_mrr_as_codebert(scores):
    """Returns the MRR of mrr.py: the rank is the number of scores that are at least as large as the
    right one.
    """
    ranks = [sum(1 for score in row if score >= row[i]) for i, row in enumerate(scores.tolist())]
    return sum(1 / rank for rank in ranks) / len(ranks)


@pytest.mark.parametrize('total', [7, 20, 29, 30])
def test_chunks_match_codebert(total):
    assert [rows.tolist() for rows in shuffle_into_chunks(total, 10)] == (
        chunk_as_codebert(total, 10) or [chunk_as_codebert(total, total)[0]]
    )


def test_oracle_scores_1():
    result = make_task(2500).run(oracle)
    assert set(result.metrics.values()) == set(result.baselines['bm25'].values()) == {1.0}
    assert result.n == 2000 and result.settings['chunks'] == 2 and result.metric == 'mrr_of_1000'
    assert len(result.examples) == 10
    for example in result.examples:
        assert example.model.rank == 1 and example.right == example.query
        assert [(found.text == example.query, found.right) for found in example.model.found] == [
            (True, True),
            (False, False),
            (False, False),
        ]


def test_random_vectors_have_the_expected_mrr():
    """Ranks are uniform, so the mean of 1/rank is H_1000 / 1000. Its standard deviation over 20,000
    queries is 0.0003.
    """
    result = make_task(20_000).run(make_random_embed(7))
    expected = sum(1 / rank for rank in range(1, 1001)) / 1000
    assert result.metrics['mrr_of_1000'] == pytest.approx(expected, abs=0.001)
    assert result.baselines['random']['mrr_of_1000'] == pytest.approx(expected, abs=0.001)
    assert result.metrics['recall@10_of_1000'] == pytest.approx(0.01, abs=0.003)


def test_equal_vectors_have_the_last_rank():
    result = make_task(1000).run(lambda texts, side: np.full((len(texts), 8), 8**-0.5, np.float32))
    assert result.metrics['mrr_of_1000'] == pytest.approx(1 / 1000)
    assert result.metrics['recall@10_of_1000'] == 0


def test_small_set_is_one_chunk_and_the_protocol_states_it():
    result = make_task(30).run(oracle)
    assert result.n == 30 and 'mrr_of_30' in result.metrics
    assert 'the whole set is one chunk' in result.settings['protocol']
    assert (
        'the whole set is one chunk'
        not in make_task(30, candidates=10).run(oracle).settings['protocol']
    )


def test_ties_are_ranked_as_in_codebert():
    rng = np.random.default_rng(0)
    # Small integers: products are exact, and there are many ties.
    vectors = {side: rng.integers(0, 3, (400, 3)).astype(np.float32) for side in 'xy'}
    result = make_task(400, candidates=100).run(
        lambda texts, side: vectors[side][[int(text.removeprefix('name')) for text in texts]]
    )
    expected = [
        compute_mrr_as_codebert(vectors['x'][rows] @ vectors['y'][rows].T)
        for rows in chunk_as_codebert(400, 100)
    ]
    assert result.metrics['mrr_of_100'] == pytest.approx(np.mean(expected), rel=1e-12)


def test_recall_counts_ranks_up_to_the_cutoff():
    assert compute_rank_metrics(np.array([1, 5, 6, 11]), 20) == {
        'mrr_of_20': pytest.approx((1 + 1 / 5 + 1 / 6 + 1 / 11) / 4),
        'recall@1_of_20': 0.25,
        'recall@5_of_20': 0.5,
        'recall@10_of_20': 0.75,
    }


def test_python_source_task_is_neither_trivial_nor_impossible():
    """On real data, BM25 finds many functions, and random vectors find none."""
    result = find(None)['codesearch/python_source'].run(make_random_embed(1))
    assert result.n == 1000 and result.settings['candidates'] == 1000
    assert 0.3 < result.baselines['bm25']['mrr_of_1000'] < 0.8
    assert result.metrics['mrr_of_1000'] < 0.015
    assert result.settings['queries_verbatim_in_their_code'] <= 10
    json.dumps(result.settings)


def test_functions_seen_in_training_are_counted():
    """A run with the default hold-out has seen none of the functions; one without a hold-out has
    seen all.
    """
    seen = [
        load_python_source_pairs([{'holdout': holdout}]).settings['functions_trained_on']
        for holdout in (0.1, 0.0)
    ]
    assert seen[0] == 0 and seen[1] == load_python_source_pairs().settings['pairs'] > 1000


def make_integer_embed(seed, sides='xy'):
    """Returns a table of small integers and an embedding function of its rows (`name7` is row 7).

    Products are exact, and there are many ties.
    """
    rng = np.random.default_rng(seed)
    table = {side: rng.integers(0, 3, (900, 4)).astype(np.float32) for side in sides}
    return table, lambda texts, side: table[side][
        [int(text.removeprefix('name')) for text in texts]
    ]


def test_both_directions_use_the_same_chunks():
    """As in CodeSearchNet's model_test.py, the scores are transposed to search for docstrings."""
    table, embed = make_integer_embed(1)
    task = make_task(250, candidates=100)
    result = with_options(task.load, candidates=100, code_direction='both').run(embed)
    forth, back = ([], [])
    for rows in chunk_as_codebert(250, 100):
        scores = table['x'][rows] @ table['y'][rows].T
        forth.append(compute_mrr_as_codebert(scores))
        back.append(compute_mrr_as_codebert(scores.T))
    assert result.metric == 'mrr_of_100'
    assert result.metrics['mrr_of_100'] == pytest.approx(np.mean(forth), rel=1e-12)
    assert (
        result.metrics['code_to_text_mrr_of_100']
        == pytest.approx(np.mean(back), rel=1e-12)
        != result.metrics['mrr_of_100']
    )
    assert result.metrics.keys() == result.baselines['bm25'].keys()
    for name, values in result.baseline_values.items():  # their intervals are drawn from these
        means = {metric: values_Q.mean() for metric, values_Q in values.items()}
        assert means == pytest.approx(result.baselines[name])
    assert result.settings['direction'] == 'query to code and code to query'
    alone = with_options(task.load, candidates=100, code_direction='code_to_text').run(embed)
    assert alone.main_score == result.metrics['code_to_text_mrr_of_100'] and len(alone.metrics) == 4
    assert label_metric(alone.metric) == 'code to text MRR of 100'
    assert label_metric('mrr_of_all') == 'MRR of all'


def test_codebase_functions_are_candidates_without_chunks():
    """As in GraphCodeBERT, all functions are one pool, and no query is dropped."""
    table, embed = make_integer_embed(2)
    texts, others = [f'name{i}' for i in range(300)], [f'name{i}' for i in range(300, 900)]
    task = with_options(
        lambda: CodePairs(texts, list(texts), {'data': 'made'}, others),
        candidates=0,
        code_direction='both',
    )
    result = task.run(embed)
    scores = table['x'][:300] @ table['y'].T
    ranks = [sum(score >= row[i] for score in row) for i, row in enumerate(scores)]
    assert result.metrics['mrr_of_all'] == pytest.approx(np.mean(1 / np.array(ranks)), rel=1e-12)
    assert result.metrics['code_to_text_mrr_of_all'] == pytest.approx(
        compute_mrr_as_codebert(scores[:, :300].T), rel=1e-12
    )
    assert result.n == 300
    assert result.settings['candidates'] == 900
    assert result.metric == 'mrr_of_all'
    other_way = with_options(task.load, candidates=0, code_direction='code_to_text').run(embed)
    assert other_way.settings['candidates'] == 300
    # Chunks do not contain functions of the codebase.
    assert with_options(task.load, candidates=100).run(embed).settings['candidates'] == 100


def test_ranks_beyond_1000_count_0_among_all_candidates():
    ranks = np.array([1, 1000, 1001])
    assert compute_rank_metrics(ranks, None)['mrr_of_all'] == pytest.approx((1 + 1 / 1000) / 3)
    assert compute_rank_metrics(ranks, 10_000)['mrr_of_10000'] == pytest.approx(
        (1 + 1 / 1000 + 1 / 1001) / 3
    )


def test_tasks_are_found_with_their_codebase_files(tmp_path):
    """Codebase functions with the url of a test pair are not added."""
    (tmp_path / 'codesearch').mkdir()
    rows = [
        {'url': f'u{i}', 'docstring': f'Does {i}.', 'code': f'int f{i}() {{}}', 'language': 'java'}
        for i in range(5)
    ]
    for name, part in (('java', rows[:3]), ('java.codebase', rows[1:]), ('go_test_0', rows)):
        packed = gzip.open if name == 'go_test_0' else open
        with packed(
            tmp_path / 'codesearch' / (name + ('.jsonl.gz' if name == 'go_test_0' else '.jsonl')),
            'wt',
        ) as file:
            file.writelines(json.dumps(row) + '\n' for row in part)
    assert [*find(epath.Path(tmp_path))] == [
        'codesearch/go',
        'codesearch/java',
        'codesearch/python_source',
    ]
    (tmp_path / 'codesearch' / 'python_source.jsonl').write_text('')
    with pytest.raises(UserError, match='the task codesearch/python_source needs no file'):
        find(epath.Path(tmp_path))
    (tmp_path / 'codesearch' / 'python_source.jsonl').unlink()
    counts = {
        size: len(find(epath.Path(tmp_path), candidates=size)['codesearch/java'].load().other_codes)
        for size in (0, 1000)
    }
    assert counts == {0: 2, 1000: 0}
    files = [
        epath.Path(tmp_path / 'codesearch' / f'{name}.jsonl') for name in ('java', 'java.codebase')
    ]
    found = load_file_pairs(files[0], codebase=files[1])
    assert found.other_codes == ['int f3() {}', 'int f4() {}']
    assert found.settings['data'] != load_file_pairs(files[0]).settings['data']
