import json

import pytest
from etils import epath

from cpt_jax.errors import UserError
from cpt_jax.evals.results import add_result, continued, examples_json, format_table, new_results, read_json, write_json
from cpt_jax.evals.task import Answers, Example, Found, Result


def make_result(value=0.5):
    answers = Answers([Found('code', 0.25, True)], 1)
    return Result(
        metric='mrr_of_1000',
        metrics={'mrr_of_1000': value, 'recall@1_of_1000': 0.25},
        n=1000,
        settings={'seed': 0},
        baselines={'bm25': {'mrr_of_1000': 0.4, 'recall@1_of_1000': 0.3}, 'random': {'mrr_of_1000': 0.0075, 'recall@1_of_1000': 0.001}},
        examples=[Example('query', 'code', answers, Answers([], None))],
    )


def test_a_row_as_documented():
    results = add_result(new_results('runs/a', {'step': 5}), 'codesearch/x', make_result())
    assert results['model'] == 'runs/a' and results['settings'] == {'step': 5}
    assert results['tasks']['codesearch/x'] == {
        'main_score': 0.5,
        'metrics': {'mrr_of_1000': 0.5, 'recall@1_of_1000': 0.25},
        'n': 1000,
        'counted': 'queries',
        'settings': {'main_metric': 'mrr_of_1000', 'seed': 0},
        'baselines': make_result().baselines,
    }


def test_rows_of_the_same_model_stay_and_are_replaced_by_name():
    earlier = add_result(add_result(new_results('m', {'size': (1, 2)}), 'a', make_result(0.1)), 'b', make_result(0.2))
    results, replaced = continued(new_results('m', {'size': [1, 2]}), json.loads(json.dumps(earlier)))
    results = add_result(results, 'a', make_result(0.9))
    assert not replaced
    assert {name: row['main_score'] for name, row in results['tasks'].items()} == {'a': 0.9, 'b': 0.2}
    assert {name: row['main_score'] for name, row in earlier['tasks'].items()} == {'a': 0.1, 'b': 0.2}


@pytest.mark.parametrize(
    ('model', 'settings', 'said'),
    [('other', {'step': 1}, 'another model (m)'), ('m', {'step': 2, 'template': '{text}'}, 'm with other settings (step, template)')],
)
def test_rows_of_another_model_do_not_stay_and_the_user_is_told(model, settings, said):
    earlier = add_result(new_results('m', {'step': 1}), 'a', make_result())
    results, replaced = continued(new_results(model, settings), earlier)
    assert results['tasks'] == {}
    assert said in replaced


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = epath.Path(tmp_path) / 'new' / 'results.json'
    write_json(path, {'a': 'é'})
    assert json.loads((tmp_path / 'new' / 'results.json').read_text(encoding='utf-8')) == {'a': 'é'}
    with pytest.raises(ValueError):
        write_json(path, {'a': float('nan')})
    assert read_json(path) == {'a': 'é'}
    assert [file.name for file in (tmp_path / 'new').iterdir()] == ['results.json']


def test_reading(tmp_path):
    assert read_json(epath.Path(tmp_path / 'none.json')) == {}
    (tmp_path / 'cut.json').write_text('{"model": ')
    with pytest.raises(UserError, match=r'cut.json: not JSON'):
        read_json(epath.Path(tmp_path / 'cut.json'))


def test_the_table():
    results = add_result(add_result(new_results('m', {}), 'codesearch/x', make_result()), 'b', make_result(1.0))
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


def test_examples_become_plain_json():
    assert json.loads(json.dumps(examples_json(make_result()))) == [
        {
            'query': 'query',
            'right': 'code',
            'model': {'found': [{'text': 'code', 'score': 0.25, 'right': True}], 'rank': 1},
            'bm25': {'found': [], 'rank': None},
        }
    ]


def test_a_file_that_holds_no_results_is_refused(tmp_path):
    (tmp_path / 'results.json').write_text('[1, 2]')
    with pytest.raises(UserError, match='not an object with results'):
        read_json(epath.Path(tmp_path / 'results.json'))
