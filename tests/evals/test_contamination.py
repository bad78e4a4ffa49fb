import pytest

from cpt_jax.evals.contamination import judge_contamination
from cpt_jax.evals.store.results import format_table


def make_scope(searched=5, queries_only=False):
    """Returns the test set STS12 as a run stores it."""
    return {'sts/STS12': {'texts': 5, 'searched': searched, 'queries_only': queries_only}}


@pytest.mark.parametrize(
    ('sources', 'from_scratch', 'state'),
    [
        ({'a': ['sts/STS12', 'sts/STS13'], 'b': ['sts/STS12']}, True, 'cleaned'),
        ({'a': ['sts/STS12'], 'b': ['sts/STS12']}, False, 'unknown'),  # the base's data are
        ({'a': ['sts/STS12']}, True, 'unknown'),  # b was not prepared
        ({'a': ['sts/STS12'], 'b': ['sts/STS13']}, True, 'not cleaned'),
        ({'a': None}, True, 'not cleaned'),
        ({}, True, 'unknown'),
        (dict.fromkeys('ab', make_scope()), True, 'cleaned'),
        (dict.fromkeys('ab', make_scope(searched=0)), True, 'not cleaned'),
        (dict.fromkeys('ab', make_scope(searched=4)), True, 'partly cleaned (4 of 5 texts)'),
        (
            {'a': make_scope(), 'b': make_scope(queries_only=True)},
            True,
            'partly cleaned (queries only)',
        ),
        (dict.fromkeys('ab', make_scope(queries_only=True)), False, 'unknown'),
    ],
)
def test_states(sources, from_scratch, state):
    settings = {'trained_on': {'a': {}, 'b': {}}}
    if sources:
        settings['cleaned'] = {'sources': sources, 'from_scratch': from_scratch}
    assert judge_contamination(settings, 'sts/STS12') == state


def test_table_has_the_state_beside_each_score_if_any_is_known():
    row = {'metrics': {'spearman': 0.5}, 'baselines': {}, 'settings': {}, 'n': 9}
    tasks = {name: dict(row) for name in ('a', 'b', 'c')}
    assert 'training data' not in format_table({'tasks': tasks})
    tasks['a']['contamination'] = 'cleaned'
    tasks['b']['contamination'] = 'partly cleaned (queries only)'
    head, _, *lines = format_table({'tasks': tasks}).splitlines()
    assert head.endswith('training data')
    for line, state in zip(lines, ('cleaned', '(queries only)', 'unknown'), strict=True):
        assert line.endswith(state)
