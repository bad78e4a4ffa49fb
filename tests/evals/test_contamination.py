import pytest

from cpt_jax.evals.contamination import describe_contamination, judge_contamination


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


def test_lines_name_the_tasks_of_each_state():
    rows = {'a': {'contamination': 'cleaned'}, 'b': {'contamination': 'not cleaned'}, 'c': {}}
    assert [line.partition('data: ')[2] for line in describe_contamination(rows)] == [
        'cleaned: a', 'not cleaned: b', 'unknown: c'
    ]  # fmt: skip
    assert not [*describe_contamination({'c': {}})]
    partly = {'d': {'contamination': 'partly cleaned (queries only)'}}
    assert [line.partition('data: ')[2] for line in describe_contamination(rows | partly)][1] == (
        'partly cleaned (queries only): d'
    )
