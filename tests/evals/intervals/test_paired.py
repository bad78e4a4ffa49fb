import json

import numpy as np
import pytest
from etils import epath

from cpt_jax.evals.intervals.bootstrap import DESCRIPTION, compute_interval, draw_means
from cpt_jax.evals.intervals.item_scores import PairScores, QueryScores, make_scores_path
from cpt_jax.evals.intervals.paired import compare_results, format_differences, read_results
from cpt_jax.evals.run import store_result
from cpt_jax.evals.store.results import RESULTS, ResultsFile
from cpt_jax.evals.suites import SUITES
from cpt_jax.evals.task import Result
from cpt_jax.runtime.errors import UserError

GENERATOR = np.random.default_rng(0)
BASE_Q = GENERATOR.random(200)
GOLD_N = GENERATOR.integers(0, 6, 300).astype(np.float64)


def make_result(values_Q, items='same', metric='ndcg@10'):
    scores = QueryScores(items, {metric: values_Q})
    score = float(np.mean(values_Q))
    return Result(metric, {metric: score}, len(values_Q), {}, item_scores=scores)


def make_similarity(noise, sizes=(300,)):
    rng = np.random.default_rng(1)
    cosines_N = (GOLD_N + noise * rng.standard_normal(300)).astype(np.float32)
    scores = PairScores('pairs', cosines_N, GOLD_N, sizes)
    return Result('spearman', {'spearman': 0.5}, 300, {}, item_scores=scores)


def write_results(folder, model, **tasks):
    folder.mkdir(exist_ok=True)
    output = epath.Path(folder)
    for name, result in tasks.items():
        results = ResultsFile(output / RESULTS, model, {})
        store_result(results, name.replace('_', '/'), result, 'f')
    return str(folder)


def compare(first, second):
    results = read_results(first), read_results(second)
    differences = compare_results(*results)
    return {d.task: d for d in differences}, format_differences(
        differences, results, (first, second)
    )


def test_differences_are_paired(tmp_path):
    better_Q = BASE_Q + 0.01 + 0.02 * GENERATOR.standard_normal(200)
    first = write_results(tmp_path / 'a', 'm1', retrieval_x=make_result(BASE_Q))
    second = write_results(tmp_path / 'b', 'm2', retrieval_x=make_result(better_Q))
    rows, text = compare(first, second)
    reference = draw_means((better_Q - BASE_Q)[:, None])[:, 0]
    # The interval of a single score is ten times as wide.
    assert rows['retrieval/x'].interval == pytest.approx(compute_interval(reference))
    low, high = json.loads((tmp_path / 'a' / RESULTS).read_text())['tasks']['retrieval/x'][
        'intervals'
    ]['ndcg@10']
    assert high - low == pytest.approx(4 * 0.29 / 200**0.5, rel=0.1)
    assert rows['retrieval/x'].verdict == 'B is better'
    assert compare(second, first)[0]['retrieval/x'].verdict == 'A is better'
    assert compare(first, first)[0]['retrieval/x'].verdict == 'no difference shown'
    assert f'A: {first} (m1)' in text and 'retrieval/x  nDCG@10' in text


def test_few_queries_have_no_interval_that_would_always_exclude_0(tmp_path):
    for count in (5, 6):
        first, second = (
            write_results(tmp_path / f'{name}{count}', name, retrieval_x=make_result(values_Q))
            for name, values_Q in (('a', BASE_Q[:count]), ('b', BASE_Q[:count] + 0.1))
        )
        difference = compare(first, second)[0]['retrieval/x']
        assert (difference.interval is None) == (count == 5)
        verdict = 'B is better' if count == 6 else 'no interval: 5 of the 6 queries'
        assert difference.verdict.startswith(verdict)


def test_correlations_of_the_same_pairs_are_compared(tmp_path):
    first = write_results(tmp_path / 'a', 'm', sts_y=make_similarity(3.0))
    second = write_results(tmp_path / 'b', 'm', sts_y=make_similarity(1.0, sizes=(300,)))
    rows, _ = compare(first, second)
    assert rows['sts/y'].verdict == 'B is better'
    several = make_similarity(1.0, sizes=(100, 200)).item_scores.draw_scores()
    assert several.keys() == {'spearman', 'pearson', 'spearman_mean', 'spearman_wmean'}


def test_mean_of_a_suite_has_an_interval_and_is_compared(tmp_path, monkeypatch):
    """With independent draws, the interval of the mean of six tasks is sqrt(6) times as narrow as
    that of one of them.
    """
    names = [task.replace('/', '_') for task in SUITES['suite/csn'].tasks]
    better_Q = BASE_Q + 0.01 + 0.02 * GENERATOR.standard_normal(200)
    base, better = make_result(BASE_Q), make_result(better_Q)
    first = write_results(tmp_path / 'a', 'm1', **dict.fromkeys(names, base))
    second = write_results(tmp_path / 'b', 'm2', **dict.fromkeys(names, better))

    def read_row(folder):
        return json.loads((tmp_path / folder / RESULTS).read_text())['tasks']['suite/csn']

    low, high = read_row('a')['intervals']['ndcg@10']
    assert low < np.mean(BASE_Q) < high
    assert high - low == pytest.approx(4 * 0.29 / 200**0.5 / 6**0.5, rel=0.1)
    assert read_row('a')['settings']['intervals'] == DESCRIPTION
    reads = []
    with monkeypatch.context() as patch:
        load = np.load
        patch.setattr(np, 'load', lambda *args, **kwargs: reads.append(1) or load(*args, **kwargs))
        rows, _ = compare(first, second)
    assert len(reads) == 2 * (6 + 6)  # of both models, for the tasks and for their mean
    difference, one = rows['suite/csn'], rows['codesearch/go']
    assert difference.verdict == 'B is better'
    widths = [np.diff(row.interval).item() for row in (difference, one)]
    assert widths[0] == pytest.approx(widths[1] / 6**0.5, rel=0.1)

    # Another task does not change it, and a task without scores of its queries removes it.
    before = read_row('b')
    with monkeypatch.context() as patch:
        patch.setattr('cpt_jax.evals.suites.draw_mean_score', None)  # a call would fail
        write_results(tmp_path / 'b', 'm2', retrieval_x=better)
    assert read_row('b') == before
    old = make_result(BASE_Q / 2)._replace(item_scores=None)
    write_results(tmp_path / 'a', 'm1', codesearch_go=old)
    assert 'intervals' not in read_row('a') and 'intervals' not in read_row('a')['settings']
    verdict = compare(first, second)[0]['suite/csn'].verdict
    assert verdict.startswith(f'codesearch/go: A: {first}/scores/codesearch/go.npz is of another')


def test_tasks_that_cannot_be_compared_name_the_reason(tmp_path):
    first = write_results(
        tmp_path / 'a',
        'm',
        retrieval_only=make_result(BASE_Q),
        retrieval_metric=make_result(BASE_Q),
        retrieval_data=make_result(BASE_Q),
        retrieval_old=make_result(BASE_Q),
        retrieval_stale=make_result(BASE_Q),
        bias_MR=make_result(BASE_Q)._replace(item_scores=None),
    )
    second = write_results(
        tmp_path / 'b',
        'm',
        retrieval_metric=make_result(BASE_Q, metric='mrr@10'),
        retrieval_data=make_result(BASE_Q, items='others'),
        retrieval_old=make_result(BASE_Q)._replace(item_scores=None),
        retrieval_stale=make_result(BASE_Q),
        bias_MR=make_result(BASE_Q)._replace(item_scores=None),
    )
    stale = make_scores_path(epath.Path(first), 'retrieval/stale')
    stale.write_bytes(make_scores_path(epath.Path(first), 'retrieval/old').read_bytes()[:-30])
    rows, text = compare(first, second)
    problems = {task.partition('/')[2]: row.verdict for task, row in rows.items()}
    assert problems == {
        'only': 'only in A',
        'metric': 'the main metrics differ',
        'data': 'not the same queries or pairs: other data or split',
        'old': f'B: {second}/scores/retrieval/old.npz is missing: evaluate again with --again',
        'stale': f'A: {stale} is of another evaluation: evaluate again with --again',
        'MR': 'no intervals for this kind of task',
    }
    assert all(problem in text for problem in problems.values())


def test_scores_of_a_replaced_model_are_removed(tmp_path):
    write_results(tmp_path / 'a', 'm1', retrieval_x=make_result(BASE_Q))
    folder = write_results(tmp_path / 'a', 'm2', retrieval_y=make_result(BASE_Q))
    assert not make_scores_path(epath.Path(folder), 'retrieval/x').exists()
    assert make_scores_path(epath.Path(folder), 'retrieval/y').exists()


def test_missing_results_are_reported(tmp_path):
    with pytest.raises(UserError, match=r'--compare .*: no results.json there: give the --output'):
        read_results(str(tmp_path))
