from statistics import fmean

import pytest

from cpt_jax.evals.figures import MARKS, Score
from cpt_jax.evals.published import BEIR, CODE_1K, CODE_ALL, LARGE_SEARCH, PROBE, SST, STS, TABLES, TEXT_1K
from cpt_jax.evals.suites import SUITES


@pytest.mark.parametrize(
    ('table', 'group', 'name', 'task', 'printed', 'mark'),
    [
        (STS, 'PromptEOL', 'OPT-1.3B', 'suite/sts', '73.18', 'D'),
        (STS, 'PromptEOL', 'OPT-66B', 'suite/sts', '68.84', 'P'),
        (STS, 'PromptEOL, one demonstration', 'OPT-6.7B', 'sts/SICK-R', '76.77', 'C'),
        (STS, 'PromptEOL, trained on NLI', 'OPT-2.7B', 'sts/STSBenchmark', '88.33', 'C'),
        (STS, 'SimCSE, supervised', 'BERT-base', 'sts/STS13', '84.67', 'C'),
        (PROBE, 'PromptEOL, OPT-6.7B', 'two demonstrations', 'suite/senteval', '91.78', 'P'),
        (SST, 'cpt-text, trained on NLI', 'L', 'zeroshot/SST2', '89.1', 'T'),
        (LARGE_SEARCH, 'cpt-text, unsupervised', 'XL', 'retrieval/msmarco', '22.7', 'T'),
        (LARGE_SEARCH, 'supervised', 'FiD-KD', 'openqa/triviaqa', '87.7', 'T'),
        (BEIR, 'cpt-text, unsupervised', 'S', 'retrieval/trec-covid', '52.9', 'T'),
        (BEIR, 'cpt-text, unsupervised', 'S', 'suite/cpt_beir', '42.2', 'D'),
        (BEIR, 'cpt-text, trained on MS MARCO', 'XL', 'retrieval/nfcorpus', '40.7', 'T'),
        (BEIR, 'others', 'BM25', 'suite/cpt_beir', '47.6', 'T'),
        (CODE_1K, 'cpt-code', 'M', 'codesearch/javascript', '86.5', 'T'),
        (CODE_ALL, "GraphCodeBERT's setting", 'UniXcoder', 'codesearch/ruby', '74.0', 'T'),
        (TEXT_1K, 'CodeSearchNet', 'SelfAtt', 'codesearch/php', '60.1', 'P'),
    ],
)
def test_figures_as_printed(table, group, name, task, printed, mark):
    (model,) = (model for model in table.models if (model.group, model.name) == (group, name))
    score = [score for score in table.scores if score.task == task][-1]
    assert model.figures[score] == (printed, mark)


def test_means_are_those_of_the_cells():
    """A cell in the wrong column does not show here, one with a wrong digit does."""
    whole = 0
    for table in TABLES:
        for model in table.models:
            cells = [float(figure.printed) for score, figure in model.figures.items() if score.task not in SUITES]
            means = [figure for score, figure in model.figures.items() if score.task in SUITES]
            if means and len(cells) == len(table.scores) - 1:
                assert fmean(cells) == pytest.approx(float(means[0].printed), abs=0.06), (table.title, model.name)
                whole += 1
    assert whole == 27


def test_figures_belong_to_tasks_and_have_marks():
    for table in TABLES:
        assert len({(model.group, model.name) for model in table.models}) == len(table.models)
        assert {*table.sizes} <= {score.task for score in table.scores}
        for model in table.models:
            assert model.source and model.figures.keys() <= {*table.scores}
            assert all(figure.mark in MARKS and 0 < float(figure.printed) < 100 for figure in model.figures.values())


def test_what_could_be_read_nowhere_is_not_there():
    assert Score('knn/SST2', 'accuracy') not in SST.models[0].figures
    assert all(score.task == 'suite/senteval' for model in PROBE.models for score in model.figures)
