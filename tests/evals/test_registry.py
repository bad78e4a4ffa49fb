import pytest

from cpt_jax.evals.registry import find_tasks, make_options, select_tasks
from cpt_jax.runtime.errors import UserError


@pytest.fixture
def data_dir(tmp_path):
    for folder in ('retrieval/scifact', 'retrieval/cosqa', 'codesearch', 'retrieval/empty'):
        (tmp_path / folder).mkdir(parents=True)
    for file in (
        'retrieval/scifact/corpus.jsonl',
        'retrieval/cosqa/corpus.jsonl',
        'codesearch/go.jsonl',
        'codesearch/ruby_0.jsonl.gz',
    ):
        (tmp_path / file).touch()
    (tmp_path / 'codesearch' / 'README.md').touch()
    return str(tmp_path)


def names(patterns, data_dir):
    return [task.name for task in select_tasks(find_tasks(data_dir), patterns, data_dir)]


def test_available_tasks_are_found(data_dir):
    expected = [
        'codesearch/go',
        'codesearch/ruby_0',
        'codesearch/python_source',
        'retrieval/cosqa',
        'retrieval/scifact',
    ]
    assert list(find_tasks(data_dir)) == expected
    assert list(find_tasks(None)) == ['codesearch/python_source']


def test_tasks_are_selected_by_names_and_globs(data_dir):
    assert names(['retrieval/*'], data_dir) == ['retrieval/cosqa', 'retrieval/scifact']
    assert names(['retrieval/scifact', ' codesearch/r* ', 'retrieval/*'], data_dir) == [
        'retrieval/scifact',
        'codesearch/ruby_0',
        'retrieval/cosqa',
    ]
    assert len(names(['*'], data_dir)) == 5


def test_unknown_name_lists_available_tasks(data_dir):
    with pytest.raises(UserError) as error:
        names(['codesearch/go', 'retrieval/nope'], data_dir)
    for part in (
        'retrieval/nope: no such task',
        'retrieval/cosqa',
        data_dir,
        'corpus.jsonl, queries.jsonl and qrels/test.tsv',
    ):
        assert part in str(error.value)
    assert '\n' not in str(error.value) and 'codesearch' not in str(error.value)
    with pytest.raises(
        UserError,
        match=r'sts/.: no such task; available: codesearch/\*, retrieval/\*; expected in --data_d',
    ):
        names(['sts/*'], data_dir)


def test_missing_data_directory_is_reported():
    with pytest.raises(
        UserError,
        match=r'retrieval/scifact: no such task; available: codesearch/\*; for other tasks give '
        r'--data_dir',
    ):
        names(['retrieval/scifact'], None)
    with pytest.raises(
        UserError,
        match=r'--data_dir /nowhere: no such directory; it should contain codesearch/ \(Code.*, '
        r'retrieval/<folder>/',
    ):
        find_tasks('/nowhere')


def test_suites_expand_to_their_tasks(data_dir, tmp_path):
    with pytest.raises(
        UserError,
        match=r'--tasks suite/cpt_beir: 10 of its 11 tasks are not in --data_dir '
        r'.*retrieval/arguana, .*; add their data',
    ):
        names(['suite/cpt_beir'], data_dir)
    chosen = select_tasks(
        find_tasks(data_dir), ['suite/cpt_beir', 'codesearch/go'], data_dir, allow_missing=True
    )
    assert [task.name for task in chosen] == ['retrieval/scifact', 'codesearch/go']
    (tmp_path / 'openqa' / 'nq').mkdir(parents=True)
    (tmp_path / 'openqa' / 'nq' / 'questions.jsonl').touch()
    assert names(['openqa/*'], data_dir) == ['openqa/nq']


def test_task_with_two_files_is_refused(data_dir, tmp_path):
    (tmp_path / 'codesearch' / 'go.jsonl.gz').touch()
    with pytest.raises(
        UserError, match=r'go.jsonl.gz: the task codesearch/go has another file too'
    ):
        find_tasks(data_dir)


def test_empty_selection_is_refused():
    with pytest.raises(UserError, match='--tasks is empty'):
        names([], None)


@pytest.mark.parametrize(
    ('name', 'value', 'expected'),
    [
        ('split', 'tset', 'one of test, dev, train'),
        ('unjudged', 'skp', 'one of refuse, skip'),
        ('index', 'hnws', 'one of exact, flat, ivf, hnsw'),
        ('k', 0, 'a number of at least 10'),
        ('search_memory', float('nan'), 'a number of at least 0.001'),
        ('candidates', '100', 'a number of at least 0'),
    ],
)
def test_invalid_option_values_are_refused(name, value, expected):
    """Values from Python have not been checked by a flag."""
    with pytest.raises(UserError, match=rf'^--{name} .*: must be {expected}$'):
        make_options(**{name: value})


def test_hidden_option_values_are_accepted():
    assert make_options(split='')['retrieval'].split == ''  # the default, which is not a choice
    assert make_options(baselines=['none'])['openqa'].baselines == []
