import pytest

from cpt_jax.evals.report.comparison import compare, left_out
from cpt_jax.evals.report.published import Figure, Model, Roughly, Score, Table, read_tables
from cpt_jax.evals.suites import SUITES
from cpt_jax.evals.tasks.probe import PROTOCOLS

PUBLISHED = [*read_tables().values()]

A, B = Score('retrieval/a', 'ndcg@10'), Score('retrieval/b', 'ndcg@10')
TABLE = Table(
    'Search',
    (A, B),
    (
        Model('old', 'one', 'Table 1', {A: Figure('50.0', 'P')}),
        Model('old', 'two', 'Table 1', {A: Figure('51.0', 'D'), B: Figure('41.0', 'T')}),
        Model('new', 'one', 'Table 2', {B: Figure('42.00', 'C')}),
    ),
    measured={'split': 'test'},
    sizes={'retrieval/a': {'n': 300, 'documents': Roughly(5000)}},
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


def test_the_model_and_its_baselines_first_then_what_is_printed():
    (table,) = compare(
        {
            'retrieval/b': row(7, score=0.4),
            'retrieval/a': row(baselines=('random', 'bm25')),
            'other': row(),
        },
        [TABLE],
    )
    assert (
        table.here == ['model', 'BM25', 'random']
        and table.groups == [('old', 2), ('new', 1)]
        and table.starts == {0, 2}
    )
    assert table.names == ['one', 'two', 'one'] and table.sources == [
        ('old', 'Table 1'),
        ('new', 'Table 2'),
    ]
    a, b = table.lines
    assert a[:4] == ('retrieval/a', 'nDCG@10', '300 queries', ['50.00', '25.00', '25.00'])
    assert a.printed == [('50.0', 'P'), ('51.0', 'D'), None]
    assert b.here == ['40.00', '', ''] and b.printed == [None, ('41.0', 'T'), ('42.00', 'C')]
    assert table.marks == {'P', 'D', 'T', 'C'}


def test_columns_and_tables_of_which_nothing_is_seen_are_not_there():
    (table,) = compare({'retrieval/b': row()}, [TABLE])
    assert (
        table.names == ['two', 'one']
        and table.groups == [('old', 1), ('new', 1)]
        and [line.task for line in table.lines] == ['retrieval/b']
    )
    assert compare({'other': row()}, [TABLE]) == [] and left_out({'other': row()}, [TABLE]) == []


@pytest.mark.parametrize(
    ('changed', 'told'),
    [
        ({'metric': 'mrr@10'}, 'retrieval/a: MRR@10 here, nDCG@10 there'),
        ({'split': 'dev'}, 'retrieval/a: split: dev here, test there'),
        ({'n': 299}, 'retrieval/a: queries: 299 here, 300 there'),
        ({'documents': 4700}, 'retrieval/a: documents: 4,700 here, about 5,000 there'),
        (
            {'documents': None, 'split': 'train'},
            'retrieval/a: split: train here, test there; documents: not said here, about 5,000 '
            'there',
        ),
    ],
)
def test_what_is_not_measured_alike_is_left_out_and_named(changed, told):
    tasks = {'retrieval/a': row(**changed), 'retrieval/b': row()}
    (table,) = compare(tasks, [TABLE])
    assert [line.task for line in table.lines] == ['retrieval/b']
    assert left_out(tasks, [TABLE]) == [told]
    assert compare({'retrieval/a': row(**changed)}, [TABLE]) == []


def test_a_mean_stands_for_all_its_tasks():
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

    (table,) = compare(tasks(protocol=PROTOCOLS['senteval']), PUBLISHED)
    fewer = tasks(protocol=PROTOCOLS['senteval'])
    assert compare(fewer | {'probe/MR': fewer['probe/MR'] | {'n': 10_661}}, PUBLISHED) == []
    assert len(table.lines) == 8 and [line.mean for line in table.lines] == 7 * [False] + [True]
    assert [figure and figure.printed for figure in table.lines[-1].printed] == [
        '91.34',
        '91.78',
    ] and not any(table.lines[0].printed)
    assert compare(tasks(protocol=PROTOCOLS['lbfgs']), PUBLISHED) == []
    (line,) = left_out(tasks(protocol=PROTOCOLS['lbfgs']), PUBLISHED)
    assert (
        line.startswith('suite/senteval: probe/MR: protocol: logistic regression')
        and 'SentEval: Adam' in line
    )


def test_code_is_compared_among_as_many_functions_of_the_same_data():
    def task(metric, n):
        return {'codesearch/go': row(n, metric=metric, candidates=10_000)}

    for n in (14_000, 8_000):  # as released, and as GraphCodeBERT cleans it, in whole thousands
        (table,) = compare(task('mrr_of_1000', n), PUBLISHED)
        assert table.title == 'Code search among 1,000 functions, MRR' and table.names == [
            'S',
            'M',
            'CodeBERT',
            'GTE-base',
        ]
        assert left_out(task('mrr_of_1000', n), PUBLISHED) == []
    for metric, n, told in (
        ('mrr_of_1000', 5_000, 'queries: 5,000 here, 14,000 or 8,000 there'),
        ('mrr_of_10000', 10_000, 'MRR of 10,000 here, MRR of 1,000 there'),
        ('mrr_of_all', 8_122, 'candidates: 10,000 here, 28,120 there'),
    ):
        assert compare(task(metric, n), PUBLISHED) == []
        assert left_out(task(metric, n), PUBLISHED) == [f'codesearch/go: {told}']
