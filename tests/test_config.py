import json
from pathlib import Path

import pytest

from cpt_jax.config import CHANGEABLE, as_json, build, check_resume, check_workdir, flatten, write_config
from cpt_jax.errors import UserError
from cpt_jax.program import load_config


def bake(flour, water, *, salt=1, oven):
    return flour, water, salt, oven


def test_a_section_is_the_arguments_of_a_function():
    assert build(bake, 'bread', {'flour': 3, 'water': 2}, oven='hot') == (3, 2, 1, 'hot')
    assert build(bake, 'bread', {'flour': 3, 'water': 2, 'salt': 0, 'oven': 'cold'}) == (3, 2, 0, 'cold')


@pytest.mark.parametrize(
    ('section', 'expected'),
    [
        ({'flour': 3, 'water': 2, 'sugar': 1}, 'unknown config key bread.sugar: bread has flour, water, salt$'),
        ({'flour': 3, 'water': 2, 'oven': 1}, 'unknown config key bread.oven'),
        ({'flour': 3}, 'config key bread.water is missing'),
    ],
)
def test_a_wrong_section_is_told_by_key(section, expected):
    with pytest.raises(UserError, match=expected):
        build(bake, 'bread', section, oven='hot')


def test_leaves_by_name():
    config = {'a': 1, 'b': {'c': [1, 2], 'd': {'e': None}, 'f': {}}}
    assert dict(flatten(config)) == {'a': 1, 'b.c': [1, 2], 'b.d.e': None, 'b.f': {}}


def config(**changes) -> dict:
    """A whole config by its leaves, with changes of some (a double underscore for a dot)."""
    made = {
        'seed': 0,
        'init_from': '',
        'tokenizer': {'vocab_size': 100},
        'data': {'sources': {'a': {'kind': 'jsonl', 'group': ('x', 'y')}}, 'rows': 0, 'threads': 2, 'prefetch': 8, 'max_tokens_x': 8},
        'model': {'width': 8, 'remat': 'full', 'layer_loop': 'auto', 'dtype': 'auto'},
        'mesh': {'data': -1},
        'loss': {'form': 'dense', 'symmetric': True},
        'optimizer': {'peak_lr': 1e-3},
        'train': {'steps': 10, 'batch_pairs': 4, 'encode_chunks': 1, 'log_every': 10},
        'evaluation': {'every_steps': 5},
        'checkpoint': {'every_steps': 5},
    }
    for name, value in changes.items():
        *folders, key = name.split('__')
        place = made
        for folder in folders:
            place = place[folder]
        place[key] = value
    return made


def resume(tmp_path, **changes) -> list[str]:
    return check_resume(json.loads(json.dumps(config())), config(**changes), tmp_path)


def test_the_same_config_goes_on(tmp_path):
    assert resume(tmp_path) == []


ALLOWED = {
    'train__steps': 20, 'train__log_every': 1, 'train__encode_chunks': 2, 'checkpoint__every_steps': 9, 'checkpoint__keep': 1,
    'evaluation__every_steps': 0, 'mesh__data': 2, 'loss__form': 'chunked', 'loss__chunks': 4, 'model__remat': 'none',
    'model__attention': 'masked', 'model__layer_loop': 'scan', 'data__packed': False, 'data__rows': 4, 'data__row_choices': 2,
    'data__threads': 9, 'data__prefetch': 1,
}  # fmt: skip
REFUSED = {
    'seed': 1, 'init_from': 'runs/x', 'tokenizer__vocab_size': 99, 'data__sources__a__group': ('x',), 'data__sources__b': {'kind': 'text'},
    'data__max_tokens_x': 9, 'model__width': 16, 'model__dtype': 'bfloat16', 'model__depth': 3, 'loss__symmetric': False,
    'optimizer__peak_lr': 2e-3, 'train__batch_pairs': 8,
}  # fmt: skip


@pytest.mark.parametrize('key', ALLOWED)
def test_what_changes_nothing_that_was_learned_may_change(tmp_path, key):
    (line,) = resume(tmp_path, **{key: ALLOWED[key]})
    assert line.startswith(key.replace('__', '.') + ': ') and line.endswith(f' -> {ALLOWED[key]!r}')


def test_every_changeable_key_is_tried_above():
    names = [key.replace('__', '.') for key in ALLOWED]
    assert all(any(name == free or (free.endswith('.') and name.startswith(free)) for name in names) for free in CHANGEABLE)


@pytest.mark.parametrize('key', REFUSED)
def test_what_decides_what_was_learned_may_not_change(tmp_path, key):
    with pytest.raises(UserError, match=f'{tmp_path} holds a run of another config: {key.replace("__", ".")}.* was .* and is ') as error:
        resume(tmp_path, train__steps=20, **{key: REFUSED[key]})
    assert 'train.steps' not in str(error.value) and '\n' not in str(error.value)


def test_a_run_from_before_there_was_a_choice_goes_on(tmp_path):
    now = load_config(Path(__file__).parents[1] / 'configs/quickstart.py')
    before = json.loads(json.dumps({section: keys for section, keys in now.items() if section not in ('prompt', 'lora', 'objective')}))
    del before['loss']['train_temperature'], before['optimizer']['decay']
    assert check_resume(before, now, tmp_path) == []
    with pytest.raises(UserError, match=r'lora\.rank was .* and is 4'):
        check_resume(before, now | {'lora': now['lora'] | {'rank': 4}}, tmp_path)


def test_a_key_that_went_is_refused(tmp_path):
    now = config()
    del now['optimizer']['peak_lr']
    with pytest.raises(UserError, match='optimizer.peak_lr was 0.001 and is None'):
        check_resume(config(), now, tmp_path)


def test_a_config_comes_back_from_its_file(tmp_path):
    write_config(tmp_path, config())
    assert json.loads((tmp_path / 'config.json').read_text()) == as_json(config())
    assert as_json(config())['data']['sources']['a']['group'] == ['x', 'y']


def test_a_config_of_somebodys_model_is_not_overwritten(tmp_path):
    check_workdir(tmp_path / 'not there')
    write_config(tmp_path, {'train': {}})
    check_workdir(tmp_path)
    for content in ('{"model_type": "opt"}', 'no JSON', ''):
        (tmp_path / 'config.json').write_text(content)
        with pytest.raises(UserError, match='config.json is none of a run, and would be overwritten: give another --workdir'):
            check_workdir(tmp_path)
