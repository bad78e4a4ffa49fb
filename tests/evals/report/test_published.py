import json
from statistics import fmean

import pytest

from cpt_jax.evals import registry
from cpt_jax.evals.report.published import MARKS, PATH, TaskMetric, parse_table, read_tables
from cpt_jax.evals.suites import SUITES
from cpt_jax.evals.tasks.knn import NEIGHBOURS
from cpt_jax.evals.tasks.probe import PROTOCOLS
from cpt_jax.evals.tasks.zeroshot import TEMPLATE, WORDS

TABLES = read_tables()


@pytest.mark.parametrize(
    ('table', 'group', 'name', 'task', 'printed', 'mark'),
    [
        ('sts', 'PromptEOL', 'OPT-1.3B', 'suite/sts', '73.18', 'D'),
        ('sts', 'PromptEOL', 'OPT-66B', 'suite/sts', '68.84', 'P'),
        ('sts', 'PromptEOL, one demonstration', 'OPT-6.7B', 'sts/SICK-R', '76.77', 'C'),
        ('sts', 'PromptEOL, trained on NLI', 'OPT-2.7B', 'sts/STSBenchmark', '88.33', 'C'),
        ('sts', 'SimCSE, supervised', 'BERT-base', 'sts/STS13', '84.67', 'C'),
        ('probe', 'PromptEOL, OPT-6.7B', 'two demonstrations', 'suite/senteval', '91.78', 'P'),
        ('sst', 'cpt-text, trained on NLI', 'L', 'zeroshot/SST2', '89.1', 'T'),
        ('large_search', 'cpt-text, unsupervised', 'XL', 'retrieval/msmarco', '22.7', 'T'),
        ('large_search', 'supervised', 'FiD-KD', 'openqa/triviaqa', '87.7', 'T'),
        ('beir', 'cpt-text, unsupervised', 'S', 'retrieval/trec-covid', '52.9', 'T'),
        ('beir', 'cpt-text, unsupervised', 'S', 'suite/cpt_beir', '42.2', 'D'),
        ('beir', 'cpt-text, trained on MS MARCO', 'XL', 'retrieval/nfcorpus', '40.7', 'T'),
        ('beir', 'others', 'BM25', 'suite/cpt_beir', '47.6', 'T'),
        ('code_1k', 'cpt-code', 'M', 'codesearch/javascript', '86.5', 'T'),
        ('code_all', "GraphCodeBERT's setting", 'UniXcoder', 'codesearch/ruby', '74.0', 'T'),
        ('text_1k', 'CodeSearchNet', 'SelfAtt', 'codesearch/php', '60.1', 'P'),
    ],
)
def test_published_numbers_match_their_sources(table, group, name, task, printed, mark):
    found = TABLES[table]
    (model,) = (model for model in found.models if (model.group, model.name) == (group, name))
    score = [score for score in found.scores if score.task == task][-1]
    assert model.cells[score] == (printed, mark)


def test_published_means_match_their_cells():
    """Detects wrong digits, but not cells in the wrong column."""
    whole = 0
    for table in TABLES.values():
        for model in table.models:
            cells = [
                float(cell.printed)
                for score, cell in model.cells.items()
                if score.task not in SUITES
            ]
            means = [cell for score, cell in model.cells.items() if score.task in SUITES]
            if means and len(cells) == len(table.scores) - 1:
                assert fmean(cells) == pytest.approx(float(means[0].printed), abs=0.06), (
                    table.title,
                    model.name,
                )
                whole += 1
    assert whole == 27


def test_published_numbers_have_rows_and_marks():
    for table in TABLES.values():
        assert len({(model.group, model.name) for model in table.models}) == len(table.models)
        assert {*table.sizes} <= {score.task for score in table.scores}
        for model in table.models:
            assert model.source and model.cells.keys() <= {*table.scores}
            assert all(
                cell.mark in MARKS and 0 < float(cell.printed) < 100
                for cell in model.cells.values()
            )


def test_unverified_numbers_are_absent():
    assert TaskMetric('knn/SST2', 'accuracy') not in TABLES['sst'].models[0].cells
    for model in TABLES['probe'].models:
        assert {score.task for score in model.cells} == {'suite/senteval'}


def test_tasks_of_tables_have_a_registered_kind():
    kinds = {kind.name for kind in registry.KINDS}
    for table in TABLES.values():
        tasks = {score.task for score in table.scores if score.task not in SUITES}
        assert {task.split('/')[0] for task in tasks} <= kinds


def test_required_settings_match_those_of_the_tasks():
    """published.json repeats texts of settings, so a change in the code must be noticed."""
    labels = {
        'words': list(WORDS),
        'description': [TEMPLATE.replace('{}', word) for word in WORDS],
    }
    measured = {'protocol': PROTOCOLS['senteval'], 'vectors': 'of any length'}
    assert TABLES['probe'].measured == measured
    assert TABLES['sst'].sizes == {
        'zeroshot/SST2': {'n': 1821, 'labels': labels},
        'knn/SST2': {'n': 1821, 'k': NEIGHBOURS},
    }


def test_column_with_missing_cells_is_refused():
    table = json.loads(PATH.read_text('utf-8'))['sst']
    table['models'][0]['rows']['L'] = '88.1 89.1'
    with pytest.raises(ValueError):
        parse_table(table)
