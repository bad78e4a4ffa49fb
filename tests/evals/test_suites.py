import pytest

from cpt_jax.evals.store.results import format_table
from cpt_jax.evals.suites import SUITES, add_suite_means, expand_suites, explain_missing_means
from cpt_jax.runtime.errors import UserError

CODE = SUITES['suite/csn'].tasks


def row(score, metric='mrr_of_1000', baselines=('bm25', 'random')):
    return {
        'main_score': score,
        'metrics': {metric: score, 'other': 0.9},
        'n': 10,
        'counted': 'queries',
        'settings': {'main_metric': metric},
        'baselines': {kind: {metric: score / 2} for kind in baselines},
    }


def test_suites_match_the_papers():
    assert [len(suite.tasks) for suite in SUITES.values()] == [11, 12, 6, 7, 7]
    assert {'retrieval/arguana', 'retrieval/webis-touche2020', 'retrieval/scifact'} < {
        *SUITES['suite/cpt_beir'].tasks
    }
    assert not {'retrieval/msmarco', 'retrieval/nq', 'retrieval/scidocs'} & {
        *SUITES['suite/cpt_beir'].tasks
    }


def test_complete_suite_has_a_mean():
    scores = dict(zip(CODE, [0.1, 0.2, 0.3, 0.4, 0.5, 0.9], strict=True))
    results = {
        'tasks': {name: row(score) for name, score in scores.items()}
        | {'codesearch/rust': row(1.0)}
    }
    found = add_suite_means(results)
    mean = found['tasks']['suite/csn']
    assert mean['main_score'] == mean['metrics']['mrr_of_1000'] == pytest.approx(0.4)
    assert mean['n'] == 6
    assert mean['counted'] == 'tasks'
    assert mean['baselines'] == {
        kind: {'mrr_of_1000': pytest.approx(0.2)} for kind in ('bm25', 'random')
    }
    assert list(found['tasks'])[:-1] == list(results['tasks']) and add_suite_means(found) == found
    assert 'suite/csn' in format_table(found) and '40.00' in format_table(found)


def test_incomplete_or_mixed_suite_has_no_mean():
    results = {'tasks': {name: row(0.5) for name in CODE}}
    for changed in (
        {'codesearch/go': row(0.5, 'mrr_of_10000')},
        {'codesearch/go': row(0.5, baselines=('bm25',))},
    ):
        found = add_suite_means({'tasks': results['tasks'] | changed})['tasks']
        assert ('suite/csn' in found) == ('mrr_of_1000' in changed['codesearch/go']['metrics'])
        assert 'suite/csn' not in found or [*found['suite/csn']['baselines']] == ['bm25']
        lines = explain_missing_means({'tasks': found}, ['sts/*', ' suite/csn'])
        assert (
            lines == []
            if 'suite/csn' in found
            else 'scored with different settings: codesearch/go mrr_of_10000, codesearch/ruby'
            in lines[0]
        )
    assert explain_missing_means({'tasks': {'codesearch/go': row(1)}}, ['suite/csn']) == [
        'suite/csn: no mean: 5 of its tasks have no score'
    ]
    stale = add_suite_means(results)
    del stale['tasks']['codesearch/go']
    assert 'suite/csn' not in add_suite_means(stale)['tasks']


def test_suite_expands_to_its_tasks():
    there = [*CODE[:4], 'sts/STS12']
    assert expand_suites(['sts/*', ' suite/csn '], [*CODE, 'x'], 'data', False) == ['sts/*', *CODE]
    assert expand_suites(['suite/csn'], there, 'data', True) == list(CODE[:4])
    with pytest.raises(
        UserError,
        match=r'suite/csn: 2 of its 6 tasks are not in --data_dir data: codesearch/javascript, '
        r'codesearch/php; .*--allow',
    ):
        expand_suites(['suite/csn'], there, 'data', False)
    with pytest.raises(UserError, match=r'suite/cpt_beir: 11 of its 11'):
        expand_suites(['suite/cpt_beir'], there, 'data', True)
