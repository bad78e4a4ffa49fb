import json

import numpy as np
import pytest
from etils import epath

from cpt_jax.evals.intervals.item_scores import QueryScores, compute_intervals
from cpt_jax.evals.report.example import Answers, Example, FoundAnswer, examples_to_json
from cpt_jax.evals.store.results import (
    ResultsFile,
    add_result,
    format_table,
    make_empty_results,
    read_earlier_json,
)
from cpt_jax.evals.task import Result
from cpt_jax.runtime.errors import UserError


def make_result(value=0.5):
    answers = Answers([FoundAnswer('code', 0.25, True)], 1)
    return Result(
        metric='mrr_of_1000',
        metrics={'mrr_of_1000': value, 'recall@1_of_1000': 0.25},
        n=1000,
        settings={'seed': 0},
        baselines={
            'bm25': {'mrr_of_1000': 0.4, 'recall@1_of_1000': 0.3},
            'random': {'mrr_of_1000': 0.0075, 'recall@1_of_1000': 0.001},
        },
        examples=[Example('query', 'code', answers, Answers([], None))],
    )


def test_row_has_the_documented_fields():
    results = add_result(make_empty_results('runs/a', {'step': 5}), 'codesearch/x', make_result())
    assert results['model'] == 'runs/a' and results['settings'] == {'step': 5}
    assert results['tasks']['codesearch/x'] == {
        'main_score': 0.5,
        'metrics': {'mrr_of_1000': 0.5, 'recall@1_of_1000': 0.25},
        'n': 1000,
        'counted': 'queries',
        'settings': {'main_metric': 'mrr_of_1000', 'seed': 0},
        'baselines': make_result().baselines,
    }


def results_file(folder, model, settings):
    return ResultsFile(epath.Path(folder) / 'results.json', model, settings)


def test_rows_of_the_same_model_are_kept_and_replaced_by_task(tmp_path):
    earlier = results_file(tmp_path, 'm', {'size': (1, 2)})
    assert earlier.load() == make_empty_results('m', {'size': [1, 2]})
    assert earlier.get_row('a') == {}
    earlier.add('a', make_result(0.1), 'f')
    earlier.add('b', make_result(0.2), 'f')
    results = results_file(tmp_path, 'm', {'size': [1, 2]})
    assert not results.describe_replaced_results()
    results.add('a', make_result(0.9), 'g')
    scores = {name: row['main_score'] for name, row in results.load()['tasks'].items()}
    assert scores == {'a': 0.9, 'b': 0.2}
    assert results.get_row('a')['fingerprint'] == 'g' and results.get_row('b')['fingerprint'] == 'f'


def test_derived_values_are_written_with_the_rows(tmp_path):
    results = results_file(tmp_path, 'm', {})
    results.add('a', make_result(), 'f', lambda rows: {**rows, 'count': len(rows['tasks'])})
    assert read_earlier_json(epath.Path(tmp_path) / 'results.json')['count'] == 1


@pytest.mark.parametrize(
    ('model', 'settings', 'message'),
    [
        ('other', {'step': 1}, 'another model (m)'),
        ('m', {'step': 2, 'template': '{text}'}, 'm with other settings (step, template)'),
    ],
)
def test_rows_of_another_model_are_replaced_with_a_message(tmp_path, model, settings, message):
    results_file(tmp_path, 'm', {'step': 1}).add('a', make_result(), 'f')
    results = results_file(tmp_path, model, settings)
    assert results.load() == make_empty_results(model, settings)
    assert message in results.describe_replaced_results()
    assert 'the earlier results.json is replaced' in (results.describe_replaced_results())
    results.add('b', make_result(), 'f')
    assert list(results.load()['tasks']) == ['b'] and not results.describe_replaced_results()


def test_later_checkpoint_is_detected(tmp_path):
    results_file(tmp_path, 'run@2', {'saved': '2026-02'}).add('a', make_result(), 'f')
    assert results_file(tmp_path, 'run@1', {'saved': '2026-01'}).holds_later_checkpoint()
    assert not results_file(tmp_path, 'run@3', {'saved': '2026-03'}).holds_later_checkpoint()


def test_missing_file_is_empty_and_truncated_file_is_refused(tmp_path):
    assert read_earlier_json(epath.Path(tmp_path / 'none.json')) == {}
    (tmp_path / 'cut.json').write_text('{"model": ')
    with pytest.raises(UserError, match=r'cut.json: not JSON .*: remove the file or write to'):
        read_earlier_json(epath.Path(tmp_path / 'cut.json'))


def test_table_shows_baselines_and_split():
    results = add_result(
        add_result(make_empty_results('m', {}), 'codesearch/x', make_result()),
        'b',
        make_result(1.0),
    )
    results['tasks']['b']['settings']['split'] = 'dev'
    results['tasks']['codesearch/x']['settings']['split'] = 'test'
    assert format_table(results).splitlines() == [
        'task          metric              model   BM25  random      n',
        '------------  -----------------  ------  -----  ------  -----',
        'codesearch/x  MRR of 1,000        50.00  40.00    0.75  1,000',
        '              Recall@1 of 1,000   25.00  30.00    0.10',
        'b (dev)       MRR of 1,000       100.00  40.00    0.75  1,000',
        '              Recall@1 of 1,000   25.00  30.00    0.10',
    ]


def test_intervals_are_stored_and_shown_beside_rows_without_them():
    values_Q = np.linspace(0, 1, 50)
    scores = QueryScores('items', {'mrr_of_1000': values_Q})
    baseline = QueryScores('items', {'mrr_of_1000': values_Q / 2})
    values = {'bm25': baseline.values}
    result = make_result()._replace(item_scores=scores, baseline_values=values)
    results = add_result(make_empty_results('m', {}), 'codesearch/x', result)
    row = results['tasks']['codesearch/x']
    assert row['intervals'] == compute_intervals(scores)
    assert row['baseline_intervals'] == {'bm25': compute_intervals(baseline)}
    assert row['settings']['intervals'].startswith('95% bootstrap percentile intervals, 2,000')
    row['intervals']['mrr_of_1000'] = [0.4214, 0.5796]
    assert format_table(add_result(results, 'b', make_result())).splitlines() == [
        'task          metric             model    95% interval   BM25  random      n',
        '------------  -----------------  -----  --------------  -----  ------  -----',
        'codesearch/x  MRR of 1,000       50.00  42.14 to 57.96  40.00    0.75  1,000',
        '              Recall@1 of 1,000  25.00                  30.00    0.10',
        'b             MRR of 1,000       50.00                  40.00    0.75  1,000',
        '              Recall@1 of 1,000  25.00                  30.00    0.10',
    ]


@pytest.mark.parametrize('interval', [[0.1], 'wide', [0.1, None]])
def test_damaged_intervals_are_reported(tmp_path, interval):
    results = add_result(make_empty_results('m', {}), 'a', make_result())
    results['tasks']['a']['intervals'] = {'mrr_of_1000': interval}
    (tmp_path / 'results.json').write_text(json.dumps(results))
    with pytest.raises(UserError, match='intervals=.*: must be an object, each value a list of tw'):
        read_earlier_json(epath.Path(tmp_path / 'results.json'))


def test_examples_convert_to_json():
    assert json.loads(json.dumps(examples_to_json(make_result().examples))) == [
        {
            'query': 'query',
            'right': 'code',
            'model': {'found': [{'text': 'code', 'score': 0.25, 'right': True}], 'rank': 1},
            'bm25': {'found': [], 'rank': None},
        }
    ]


def test_file_without_results_is_refused(tmp_path):
    (tmp_path / 'results.json').write_text('[1, 2]')
    with pytest.raises(UserError, match='not a JSON object: remove the file'):
        read_earlier_json(epath.Path(tmp_path / 'results.json'))
