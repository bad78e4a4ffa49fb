import gzip
import json

import numpy as np
import pytest
from etils import epath

from cpt_jax.benchmark_data.code_pairs import CodePairs, file_pairs, python_source_pairs
from cpt_jax.evals.store.results import metric_label
from cpt_jax.evals.task import Context
from cpt_jax.evals.tasks.codesearch import (
    CodeSearch,
    CodeSearchOptions,
    chunks,
    find_code_search,
    rank_metrics,
)
from cpt_jax.search.bm25 import random_embed


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
    """One direction for each name, the same on both sides."""
    vectors_NxD = np.random.default_rng(5).standard_normal((2500, 16), np.float32)
    vectors_NxD /= np.linalg.norm(vectors_NxD, axis=1, keepdims=True)
    return vectors_NxD[[int(text.removeprefix('name')) for text in texts]]


def codeberts_chunks(total, size):
    """process_data.py: np.random.seed(0), shuffle, chunks in order, stop at the first that is too
    short.
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


def codeberts_mrr(scores):
    """mrr.py: the rank is the number of scores that are at least the right one's."""
    ranks = [sum(1 for score in row if score >= row[i]) for i, row in enumerate(scores.tolist())]
    return sum(1 / rank for rank in ranks) / len(ranks)


@pytest.mark.parametrize('total', [7, 20, 29, 30])
def test_chunks_are_codeberts(total):
    assert [rows.tolist() for rows in chunks(total, 10)] == (
        codeberts_chunks(total, 10) or [codeberts_chunks(total, total)[0]]
    )


def test_an_oracle_scores_1():
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


def test_random_vectors_score_the_harmonic_mean():
    """Ranks are uniform: the mean of 1/rank is H_1000 / 1000. Its deviation over 20,000 queries is
    0.0003.
    """
    result = make_task(20_000).run(random_embed(7))
    expected = sum(1 / rank for rank in range(1, 1001)) / 1000
    assert result.metrics['mrr_of_1000'] == pytest.approx(expected, abs=0.001)
    assert result.baselines['random']['mrr_of_1000'] == pytest.approx(expected, abs=0.001)
    assert result.metrics['recall@10_of_1000'] == pytest.approx(0.01, abs=0.003)


def test_one_vector_for_all_texts_scores_the_last_rank():
    result = make_task(1000).run(lambda texts, side: np.full((len(texts), 8), 8**-0.5, np.float32))
    assert (
        result.metrics['mrr_of_1000'] == pytest.approx(1 / 1000)
        and result.metrics['recall@10_of_1000'] == 0
    )


def test_a_small_set_is_one_chunk_and_says_so():
    result = make_task(30).run(oracle)
    assert result.n == 30 and 'mrr_of_30' in result.metrics
    assert 'the whole set is one chunk' in result.settings['protocol']
    assert (
        'the whole set is one chunk'
        not in make_task(30, candidates=10).run(oracle).settings['protocol']
    )


def test_metrics_of_ties_equal_codeberts():
    rng = np.random.default_rng(0)
    # Whole numbers: exact, many ties.
    vectors = {side: rng.integers(0, 3, (400, 3)).astype(np.float32) for side in 'xy'}
    result = make_task(400, candidates=100).run(
        lambda texts, side: vectors[side][[int(text.removeprefix('name')) for text in texts]]
    )
    expected = [
        codeberts_mrr(vectors['x'][rows] @ vectors['y'][rows].T)
        for rows in codeberts_chunks(400, 100)
    ]
    assert result.metrics['mrr_of_100'] == pytest.approx(np.mean(expected), rel=1e-12)


def test_recall_counts_ranks_up_to_the_cut():
    assert rank_metrics(np.array([1, 5, 6, 11]), 20) == {
        'mrr_of_20': pytest.approx((1 + 1 / 5 + 1 / 6 + 1 / 11) / 4),
        'recall@1_of_20': 0.25,
        'recall@5_of_20': 0.5,
        'recall@10_of_20': 0.75,
    }


def test_the_packages_that_training_holds_out():
    """Real data: words alone find many of the functions, random vectors none."""
    result = find(None)['codesearch/python_source'].run(random_embed(1))
    assert result.n == 1000 and result.settings['candidates'] == 1000
    assert 0.3 < result.baselines['bm25']['mrr_of_1000'] < 0.8
    assert result.metrics['mrr_of_1000'] < 0.015
    assert result.settings['queries_verbatim_in_their_code'] <= 10
    json.dumps(result.settings)


def test_functions_that_a_run_was_trained_on_are_counted():
    """A run with the default hold-out has seen none of them; one that held out nothing has seen
    all.
    """
    seen = [
        python_source_pairs([{'holdout': holdout}]).settings['functions_trained_on']
        for holdout in (0.1, 0.0)
    ]
    assert seen[0] == 0 and seen[1] == python_source_pairs().settings['pairs'] > 1000


def whole_numbers(seed, sides='xy'):
    """Vectors of small whole numbers: exact products, many ties. `name7` has row 7."""
    rng = np.random.default_rng(seed)
    table = {side: rng.integers(0, 3, (900, 4)).astype(np.float32) for side in sides}
    return table, lambda texts, side: table[side][
        [int(text.removeprefix('name')) for text in texts]
    ]


def test_both_directions_of_the_same_chunks():
    """CodeSearchNet's model_test.py looks for the docstring of each code: the scores the other way
    round.
    """
    table, embed = whole_numbers(1)
    task = make_task(250, candidates=100)
    result = with_options(task.load, candidates=100, code_direction='both').run(embed)
    forth, back = ([], [])
    for rows in codeberts_chunks(250, 100):
        scores = table['x'][rows] @ table['y'][rows].T
        forth.append(codeberts_mrr(scores))
        back.append(codeberts_mrr(scores.T))
    assert result.metric == 'mrr_of_100' and result.metrics['mrr_of_100'] == pytest.approx(
        np.mean(forth), rel=1e-12
    )
    assert (
        result.metrics['code_to_text_mrr_of_100']
        == pytest.approx(np.mean(back), rel=1e-12)
        != result.metrics['mrr_of_100']
    )
    assert (
        result.metrics.keys() == result.baselines['bm25'].keys()
        and result.settings['direction'] == 'query to code and code to query'
    )
    alone = with_options(task.load, candidates=100, code_direction='code_to_text').run(embed)
    assert alone.main_score == result.metrics['code_to_text_mrr_of_100'] and len(alone.metrics) == 4
    assert (
        metric_label(alone.metric) == 'code to text MRR of 100'
        and metric_label('mrr_of_all') == 'MRR of all'
    )


def test_all_candidates_with_those_of_the_codebase():
    """GraphCodeBERT: one pool of all codes; nothing is dropped."""
    table, embed = whole_numbers(2)
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
        codeberts_mrr(scores[:, :300].T), rel=1e-12
    )
    assert (
        result.n == 300 and result.settings['candidates'] == 900 and result.metric == 'mrr_of_all'
    )
    # Others are for all alone.
    assert with_options(task.load, candidates=100).run(embed).settings['candidates'] == 100


def test_ranks_beyond_1000_count_nothing_among_all():
    ranks = np.array([1, 1000, 1001])
    assert rank_metrics(ranks, None)['mrr_of_all'] == pytest.approx((1 + 1 / 1000) / 3)
    assert rank_metrics(ranks, 10_000)['mrr_of_10000'] == pytest.approx(
        (1 + 1 / 1000 + 1 / 1001) / 3
    )


def test_files_of_a_language(tmp_path):
    """Its test set under the published name, and more codes beside it, known by their url."""
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
    counts = {
        size: len(find(epath.Path(tmp_path), candidates=size)['codesearch/java'].load().other_codes)
        for size in (0, 1000)
    }
    assert counts == {0: 2, 1000: 0}
    files = [
        epath.Path(tmp_path / 'codesearch' / f'{name}.jsonl') for name in ('java', 'java.codebase')
    ]
    found = file_pairs(files[0], codebase=files[1])
    assert (
        found.other_codes == ['int f3() {}', 'int f4() {}']
        and found.settings['data'] != file_pairs(files[0]).settings['data']
    )
