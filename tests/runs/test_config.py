import json
from pathlib import Path

import pytest

from cpt_jax.runs.config import (
    CHANGEABLE,
    MEANING_BEFORE,
    as_json,
    build,
    check_resume,
    check_workdir,
    defaults_of,
    fill_missing,
    flatten,
    write_config,
)
from cpt_jax.runs.config_file import load_config
from cpt_jax.runtime.errors import UserError


def bake(flour, water, *, salt=1, oven):
    return flour, water, salt, oven


def test_a_section_is_the_arguments_of_a_function():
    assert build(bake, 'bread', {'flour': 3, 'water': 2}, oven='hot') == (3, 2, 1, 'hot')
    assert build(bake, 'bread', {'flour': 3, 'water': 2, 'salt': 0, 'oven': 'cold'}) == (
        3,
        2,
        0,
        'cold',
    )


@pytest.mark.parametrize(
    ('section', 'expected'),
    [
        (
            {'flour': 3, 'water': 2, 'sugar': 1},
            'unknown config key bread.sugar: bread has flour, water, salt$',
        ),
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
        'data': {
            'sources': {'a': {'kind': 'jsonl', 'group': ('x', 'y')}},
            'rows': 0,
            'threads': 2,
            'prefetch': 8,
            'max_tokens_x': 8,
        },
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
    'train__steps': 20, 'train__log_every': 1, 'train__encode_chunks': 2,
    'checkpoint__every_steps': 9, 'checkpoint__keep': 1,
    'evaluation__every_steps': 0, 'mesh__data': 2, 'loss__form': 'chunked', 'loss__chunks': 4,
    'model__remat': 'none',
    'model__attention': 'masked', 'model__layer_loop': 'scan', 'data__packed': False,
    'data__rows': 4, 'data__row_choices': 2,
    'data__threads': 9, 'data__prefetch': 1,
}  # fmt: skip
REFUSED = {
    'seed': 1, 'init_from': 'runs/x', 'tokenizer__vocab_size': 99,
    'data__sources__a__group': ('x',), 'data__sources__b': {'kind': 'text'},
    'data__max_tokens_x': 9, 'model__width': 16, 'model__dtype': 'bfloat16', 'model__depth': 3,
    'loss__symmetric': False,
    'optimizer__peak_lr': 2e-3, 'train__batch_pairs': 8,
}  # fmt: skip


@pytest.mark.parametrize('key', ALLOWED)
def test_what_changes_nothing_that_was_learned_may_change(tmp_path, key):
    (line,) = resume(tmp_path, **{key: ALLOWED[key]})
    assert line.startswith(key.replace('__', '.') + ': ') and line.endswith(f' -> {ALLOWED[key]!r}')


def test_every_changeable_key_is_tried_above():
    names = [key.replace('__', '.') for key in ALLOWED]
    assert all(
        any(name == free or (free.endswith('.') and name.startswith(free)) for name in names)
        for free in CHANGEABLE
    )


@pytest.mark.parametrize('key', REFUSED)
def test_what_decides_what_was_learned_may_not_change(tmp_path, key):
    with pytest.raises(
        UserError,
        match=f'{tmp_path} holds a run of another config: '
        f'{key.replace("__", ".")}.* was .* and is ',
    ) as error:
        resume(tmp_path, train__steps=20, **{key: REFUSED[key]})
    assert 'train.steps' not in str(error.value) and '\n' not in str(error.value)


def test_a_run_from_before_there_was_a_choice_goes_on(tmp_path):
    now = load_config(Path(__file__).parents[2] / 'configs/quickstart.py')
    before = json.loads(
        json.dumps(
            {
                section: keys
                for section, keys in now.items()
                if section not in ('prompt', 'lora', 'objective')
            }
        )
    )
    del before['loss']['train_temperature'], before['optimizer']['decay']
    assert check_resume(before, now, tmp_path) == []
    with pytest.raises(UserError, match=r'lora\.rank was .* and is 4'):
        check_resume(before, now | {'lora': now['lora'] | {'rank': 4}}, tmp_path)


def sharpen(width, remat='full', layer_loop='auto', dtype='auto', blur=0.0, taps=(1, 2), hook=len):
    """A section's function with keys that `config` does not have."""
    return width, remat, layer_loop, dtype, blur, taps, hook


class Jsonl:
    """A source's class."""

    def __init__(self, path, split, group=(), max_bad_share=0.001):
        self.settings = path, split, group, max_bad_share


FUNCTIONS = {'model': sharpen, 'data.sources.a': Jsonl}


def test_defaults_are_as_a_file_keeps_them():
    assert defaults_of(sharpen) == {
        'remat': 'full',
        'layer_loop': 'auto',
        'dtype': 'auto',
        'blur': 0.0,
        'taps': [1, 2],
    }
    assert defaults_of(Jsonl) == {'group': [], 'max_bad_share': 0.001}


def test_missing_keys_take_the_default_or_what_they_meant_before():
    def mix(peak_lr, decay='constant'):
        return peak_lr, decay

    functions = {'optimizer': mix}
    filled = fill_missing({'optimizer.peak_lr': 1.0, 'lora.rank': 4}, functions)
    assert filled == {'optimizer.peak_lr': 1.0, 'optimizer.decay': 'constant', 'lora.rank': 4}
    assert fill_missing({'optimizer.decay': 'linear'}, functions)['optimizer.decay'] == 'linear'
    # A run from before the key meant cosine; a config of today that leaves it out means the
    # default of today.
    assert MEANING_BEFORE['optimizer.decay'] == 'cosine' != defaults_of(mix)['decay']
    before, now = {'optimizer': {'peak_lr': 1.0}}, {'optimizer': {'peak_lr': 1.0}}
    with pytest.raises(UserError, match="optimizer.decay was 'cosine' and is 'constant'"):
        check_resume(before, now, Path('run'), functions)
    now['optimizer']['decay'] = 'cosine'
    assert check_resume(before, now, Path('run'), functions) == []


@pytest.mark.parametrize(
    ('section', 'key', 'default', 'other'),
    [
        ('model', 'blur', 0.0, 0.5),
        ('model', 'taps', (1, 2), (1, 2, 3)),
        ('data.sources.a', 'max_bad_share', 0.001, 0.1),
    ],
)
def test_a_key_with_a_neutral_default_does_not_stop_an_older_run(
    tmp_path, section, key, default, other
):
    """Whether or not the new config sets it; another value does stop the run."""
    before = as_json(config())
    place = f'{section}.{key}'.replace('.', '__')
    assert check_resume(before, config(), tmp_path, FUNCTIONS) == []
    assert check_resume(before, config(**{place: default}), tmp_path, FUNCTIONS) == []
    with pytest.raises(UserError, match=rf'{section}\.{key} was .* and is ') as error:
        check_resume(before, config(**{place: other}), tmp_path, FUNCTIONS)
    assert f'was {as_json({"": default})[""]!r} and is {as_json({"": other})[""]!r}' in str(
        error.value
    )


def test_a_changeable_key_with_a_new_value_is_reported_with_its_default(tmp_path):
    before = as_json(config())
    del before['model']['remat']
    now = config(model__remat='none')
    (line,) = check_resume(before, now, tmp_path, FUNCTIONS)
    assert line == "model.remat: 'full' -> 'none'"


def test_a_key_that_the_new_config_leaves_out_counts_as_its_default(tmp_path):
    now = config()
    del now['model']['dtype']
    assert check_resume(as_json(config()), now, tmp_path, FUNCTIONS) == []
    with pytest.raises(UserError, match=r"model\.dtype was 'bfloat16' and is 'auto'"):
        check_resume(as_json(config(model__dtype='bfloat16')), now, tmp_path, FUNCTIONS)


def test_a_key_whose_default_is_not_what_it_meant_before(tmp_path):
    """Its old meaning counts, so a new default changes no older run without a word."""

    def mix(peak_lr, decay='constant'):
        return peak_lr, decay

    functions = {'optimizer': mix}
    same = config(optimizer__decay='cosine')
    assert check_resume(as_json(config()), same, tmp_path, functions) == []
    with pytest.raises(UserError, match=r"optimizer\.decay was 'cosine' and is 'constant'"):
        check_resume(as_json(config()), config(optimizer__decay='constant'), tmp_path, functions)


def test_a_section_that_an_older_run_did_not_have(tmp_path):
    def smooth(radius=0, shape='box'):
        return radius, shape

    functions = {'smoothing': smooth}
    now = config() | {'smoothing': {'radius': 0, 'shape': 'box'}}
    assert check_resume(as_json(config()), now, tmp_path, functions) == []
    with pytest.raises(UserError, match=r'smoothing\.radius was 0 and is 2\. '):
        check_resume(
            as_json(config()), config() | {'smoothing': {'radius': 2}}, tmp_path, functions
        )


def test_a_key_that_the_code_no_longer_has_is_refused(tmp_path):
    """No function has it, so nothing says what leaving it out would mean."""
    before = as_json(config(model__depth=3))
    with pytest.raises(UserError, match=r'model\.depth was 3 and is None\. '):
        check_resume(before, config(), tmp_path, FUNCTIONS)


def test_a_new_source_and_another_kind_are_refused(tmp_path):
    functions = FUNCTIONS | {'data.sources.b': Jsonl}
    added = config(data__sources__b={'kind': 'jsonl', 'path': 'x'})
    with pytest.raises(UserError, match=r"data\.sources\.b\.kind was None and is 'jsonl'"):
        check_resume(as_json(config()), added, tmp_path, functions)
    changed = config(data__sources__a__kind='csv')
    with pytest.raises(UserError, match=r": data\.sources\.a\.kind was 'jsonl' and is 'csv'\. Set"):
        check_resume(as_json(config()), changed, tmp_path, FUNCTIONS)


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
        with pytest.raises(
            UserError,
            match='config.json is none of a run, and would be overwritten: give another --workdir',
        ):
            check_workdir(tmp_path)
