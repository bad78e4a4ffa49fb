import pytest

from cpt_jax.evals.report.comparison import explain_excluded_tasks, make_comparisons
from cpt_jax.evals.report.published import (
    PublishedModel,
    PublishedNumber,
    RoundedCount,
    Table,
    TaskMetric,
    read_tables,
)
from cpt_jax.evals.suites import SUITES
from cpt_jax.evals.tasks.probe import PROTOCOLS

PUBLISHED = [*read_tables().values()]

A, B = TaskMetric('retrieval/a', 'ndcg@10'), TaskMetric('retrieval/b', 'ndcg@10')
TABLE = Table(
    'Search',
    (A, B),
    (
        PublishedModel('old', 'one', 'Table 1', {A: PublishedNumber('50.0', 'P')}),
        PublishedModel(
            'old',
            'two',
            'Table 1',
            {A: PublishedNumber('51.0', 'D'), B: PublishedNumber('41.0', 'T')},
        ),
        PublishedModel('new', 'one', 'Table 2', {B: PublishedNumber('42.00', 'C')}),
    ),
    measured={'split': 'test'},
    sizes={'retrieval/a': {'n': 300, 'documents': RoundedCount(5000)}},
)


def row(n=300, baselines=(), metric='ndcg@10', score=0.5, **settings):
    settings = {'main_metric': metric, 'split': 'test', 'documents': 5183, **settings}
    scores = {kind: {metric: score / 2} for kind in baselines}
    return {
        'main_score': score,
        'metrics': {metric: score},
        'n': n,
        'counted': 'queries',
        'settings': settings,
        'baselines': scores,
    }


def test_our_columns_come_before_published_columns():
    (table,) = make_comparisons(
        {
            'retrieval/b': row(7, score=0.4),
            'retrieval/a': row(baselines=('random', 'bm25')),
            'other': row(),
        },
        [TABLE],
    )
    assert table.here == ['model', 'BM25', 'random']
    assert table.groups == [('old', 2), ('new', 1)] and table.starts == {0, 2}
    assert table.names == ['one', 'two', 'one']
    assert table.sources == [('old', 'Table 1'), ('new', 'Table 2')]
    a, b = table.lines
    assert a[:4] == ('retrieval/a', 'nDCG@10', '300 queries', ['50.00', '25.00', '25.00'])
    assert a.printed == [('50.0', 'P'), ('51.0', 'D'), None]
    assert b.here == ['40.00', '', ''] and b.printed == [None, ('41.0', 'T'), ('42.00', 'C')]
    assert table.marks == {'P', 'D', 'T', 'C'}


def test_empty_columns_and_tables_are_left_out():
    (table,) = make_comparisons({'retrieval/b': row()}, [TABLE])
    assert table.names == ['two', 'one'] and table.groups == [('old', 1), ('new', 1)]
    assert [line.task for line in table.lines] == ['retrieval/b']
    assert make_comparisons({'other': row()}, [TABLE]) == []
    assert explain_excluded_tasks({'other': row()}, [TABLE]) == []


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        ({'metric': 'mrr@10'}, 'retrieval/a: MRR@10 here, nDCG@10 published'),
        ({'split': 'dev'}, 'retrieval/a: split: dev here, test published'),
        ({'n': 299}, 'retrieval/a: queries: 299 here, 300 published'),
        ({'documents': 4700}, 'retrieval/a: documents: 4,700 here, about 5,000 published'),
        (
            {'documents': None, 'split': 'train'},
            'retrieval/a: split: train here, test published; documents: unknown here, about 5,000 '
            'published',
        ),
    ],
)
def test_task_measured_differently_is_excluded_with_a_reason(changed, message):
    tasks = {'retrieval/a': row(**changed), 'retrieval/b': row()}
    (table,) = make_comparisons(tasks, [TABLE])
    assert [line.task for line in table.lines] == ['retrieval/b']
    assert explain_excluded_tasks(tasks, [TABLE]) == [message]
    assert make_comparisons({'retrieval/a': row(**changed)}, [TABLE]) == []


def test_mean_is_compared_only_if_all_its_tasks_are_comparable():
    def tasks(**settings):
        row = {
            'metrics': {'accuracy': 0.9},
            'n': 7,
            'settings': {'main_metric': 'accuracy', **settings},
            'baselines': {},
        }
        sizes = {
            'MR': 10_662,
            'CR': 3775,
            'SUBJ': 10_000,
            'MPQA': 10_606,
            'SST2': 1821,
            'TREC': 500,
            'MRPC': 1725,
        }
        return {'suite/senteval': row} | {
            name: row | {'n': sizes[name.removeprefix('probe/')]}
            for name in SUITES['suite/senteval'].tasks
        }

    senteval = {'protocol': PROTOCOLS['senteval'], 'vectors': 'of any length'}
    (table,) = make_comparisons(tasks(**senteval), PUBLISHED)
    assert make_comparisons(tasks(**senteval | {'vectors': 'of unit length'}), PUBLISHED) == []
    fewer = tasks(**senteval)
    assert (
        make_comparisons(fewer | {'probe/MR': fewer['probe/MR'] | {'n': 10_661}}, PUBLISHED) == []
    )
    assert len(table.lines) == 8 and [line.is_mean for line in table.lines] == 7 * [False] + [True]
    assert [cell and cell.printed for cell in table.lines[-1].printed] == [
        '91.34',
        '91.78',
    ]
    assert not any(table.lines[0].printed)
    assert make_comparisons(tasks(protocol=PROTOCOLS['lbfgs']), PUBLISHED) == []
    (line,) = explain_excluded_tasks(tasks(protocol=PROTOCOLS['lbfgs']), PUBLISHED)
    assert line.startswith('suite/senteval: probe/MR: protocol: logistic regression')
    assert 'SentEval: Adam' in line


def test_code_search_is_compared_for_equal_pools_and_data():
    def task(metric, n):
        return {'codesearch/go': row(n, metric=metric, candidates=10_000)}

    for n in (14_000, 8_000):  # the release, and GraphCodeBERT's cleaned version
        (table,) = make_comparisons(task('mrr_of_1000', n), PUBLISHED)
        assert table.title == 'Code search among 1,000 functions, MRR'
        assert table.names == [
            'S',
            'M',
            'CodeBERT',
            'GTE-base',
        ]
        assert explain_excluded_tasks(task('mrr_of_1000', n), PUBLISHED) == []
    for metric, n, message in (
        ('mrr_of_1000', 5_000, 'queries: 5,000 here, 14,000 or 8,000 published'),
        ('mrr_of_10000', 10_000, 'MRR of 10,000 here, MRR of 1,000 published'),
        ('mrr_of_all', 8_122, 'candidates: 10,000 here, 28,120 published'),
    ):
        assert make_comparisons(task(metric, n), PUBLISHED) == []
        assert explain_excluded_tasks(task(metric, n), PUBLISHED) == [f'codesearch/go: {message}']
