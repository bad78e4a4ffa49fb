import json
from pathlib import Path

import pytest

from cpt_jax.runs.config import (
    CHANGEABLE_KEYS,
    LEGACY_DEFAULTS,
    build,
    check_resume,
    check_workdir,
    fill_missing,
    flatten,
    get_defaults,
    to_json_values,
    write_config,
)
from cpt_jax.runs.config_file import load_config
from cpt_jax.runtime.errors import UserError


def bake(flour, water, *, salt=1, oven):
    return flour, water, salt, oven


def test_section_is_passed_as_keyword_arguments():
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
def test_error_names_the_wrong_key_of_a_section(section, expected):
    with pytest.raises(UserError, match=expected):
        build(bake, 'bread', section, oven='hot')


def test_flatten_yields_leaves_by_dotted_name():
    config = {'a': 1, 'b': {'c': [1, 2], 'd': {'e': None}, 'f': {}}}
    assert dict(flatten(config)) == {'a': 1, 'b.c': [1, 2], 'b.d.e': None, 'b.f': {}}


def make_config(**changes) -> dict:
    """Returns a config with some values changed; a double underscore in a name is a dot."""
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
        *sections, key = name.split('__')
        section = made
        for parent in sections:
            section = section[parent]
        section[key] = value
    return made


def check_resume_with(tmp_path, **changes) -> list[str]:
    """Resumes a run of make_config() with changes."""
    return check_resume(json.loads(json.dumps(make_config())), make_config(**changes), tmp_path)


def test_run_resumes_with_the_same_config(tmp_path):
    assert check_resume_with(tmp_path) == []


ALLOWED = {
    'train__steps': 20, 'train__epochs': 2.0, 'train__log_every': 1, 'train__encode_chunks': 2,
    'train__profile_steps': [3, 4], 'train__compiler_options': 'xla_a=1', 'train__wandb': 'p',
    'checkpoint__every_steps': 9, 'checkpoint__keep': 1,
    'evaluation__every_steps': 0, 'mesh__data': 2, 'loss__form': 'chunked', 'loss__chunks': 4,
    'model__remat': 'none',
    'model__attention': 'masked', 'model__layer_loop': 'scan', 'data__packed': False,
    'model__gradient_sums': 'float32', 'loss__guide': 'v', 'loss__teacher': 'v',
    'data__rows': 4, 'data__row_choices': 2,
    'data__threads': 9, 'data__prefetch': 1, 'data__verify': True, 'data__token_cache_mib': 9,
}  # fmt: skip
REFUSED = {
    'seed': 1, 'init_from': 'runs/x', 'tokenizer__vocab_size': 99,
    'data__sources__a__group': ('x',), 'data__sources__b': {'kind': 'text'},
    'data__max_tokens_x': 9, 'model__width': 16, 'model__dtype': 'bfloat16', 'model__depth': 3,
    'loss__symmetric': False,
    'optimizer__peak_lr': 2e-3, 'train__batch_pairs': 8,
}  # fmt: skip


@pytest.mark.parametrize('key', ALLOWED)
def test_changeable_key_may_change(tmp_path, key):
    (line,) = check_resume_with(tmp_path, **{key: ALLOWED[key]})
    assert line.startswith(key.replace('__', '.') + ': ') and line.endswith(f' -> {ALLOWED[key]!r}')


def test_number_of_heldout_pairs_stays_where_scores_are_compared(tmp_path):
    (line,) = check_resume_with(tmp_path, evaluation__pairs=9)
    assert line == 'evaluation.pairs: None -> 9'
    for key, value in (('evaluation__patience', 3), ('checkpoint__keep_best', True)):
        with pytest.raises(UserError, match='config: evaluation.pairs was None and is 9'):
            check_resume_with(tmp_path, evaluation__pairs=9, **{key: value})


def test_every_changeable_key_is_in_allowed():
    names = [key.replace('__', '.') for key in ALLOWED]
    assert all(
        any(name == free or (free.endswith('.') and name.startswith(free)) for name in names)
        for free in CHANGEABLE_KEYS
    )


@pytest.mark.parametrize('key', REFUSED)
def test_other_key_must_not_change(tmp_path, key):
    with pytest.raises(
        UserError,
        match=f'{tmp_path} holds a run of another config: '
        f'{key.replace("__", ".")}.* was .* and is ',
    ) as error:
        check_resume_with(tmp_path, train__steps=20, **{key: REFUSED[key]})
    assert 'train.steps' not in str(error.value) and '\n' not in str(error.value)


def test_run_from_before_some_sections_resumes(tmp_path):
    now = load_config(Path(__file__).parents[2] / 'configs/quickstart.py')
    now['prompt']['begin_token'] = 'always'  # what `resolve_form` returns for such a run
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
    """The function of a section, with keys that `make_config` does not set."""
    return width, remat, layer_loop, dtype, blur, taps, hook


class Jsonl:
    """The class of a source."""

    def __init__(self, path, split, group=(), max_bad_share=0.001):
        self.settings = path, split, group, max_bad_share


SECTION_FUNCTIONS = {'model': sharpen, 'data.sources.a': Jsonl}


def test_defaults_are_as_read_from_json():
    assert get_defaults(sharpen) == {
        'remat': 'full',
        'layer_loop': 'auto',
        'dtype': 'auto',
        'blur': 0.0,
        'taps': [1, 2],
    }
    assert get_defaults(Jsonl) == {'group': [], 'max_bad_share': 0.001}


def test_missing_key_takes_the_default_or_the_legacy_default():
    def mix(peak_lr, decay='constant'):
        return peak_lr, decay

    functions = {'optimizer': mix}
    filled = fill_missing({'optimizer.peak_lr': 1.0, 'lora.rank': 4}, functions)
    assert filled == {'optimizer.peak_lr': 1.0, 'optimizer.decay': 'constant', 'lora.rank': 4}
    assert fill_missing({'optimizer.decay': 'linear'}, functions)['optimizer.decay'] == 'linear'
    # For a run from before the key, the decay is cosine. For a new config without the key, it is
    # the default of the function.
    assert LEGACY_DEFAULTS['optimizer.decay'] == 'cosine' != get_defaults(mix)['decay']
    before = {'optimizer': {'peak_lr': 1.0}}
    now = {'optimizer': {'peak_lr': 1.0}}
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
def test_older_run_resumes_with_a_new_key_at_its_default(tmp_path, section, key, default, other):
    """The new config may set the key to its default or omit it; another value is an error."""
    before = to_json_values(make_config())
    name = f'{section}.{key}'.replace('.', '__')
    assert check_resume(before, make_config(), tmp_path, SECTION_FUNCTIONS) == []
    assert check_resume(before, make_config(**{name: default}), tmp_path, SECTION_FUNCTIONS) == []
    with pytest.raises(UserError, match=rf'{section}\.{key} was .* and is ') as error:
        check_resume(before, make_config(**{name: other}), tmp_path, SECTION_FUNCTIONS)
    assert (
        f'was {to_json_values({"": default})[""]!r} and is {to_json_values({"": other})[""]!r}'
        in str(error.value)
    )


def test_change_of_a_missing_key_is_reported_from_its_default(tmp_path):
    before = to_json_values(make_config())
    del before['model']['remat']
    now = make_config(model__remat='none')
    (line,) = check_resume(before, now, tmp_path, SECTION_FUNCTIONS)
    assert line == "model.remat: 'full' -> 'none'"


def test_key_missing_in_the_new_config_counts_as_its_default(tmp_path):
    now = make_config()
    del now['model']['dtype']
    assert check_resume(to_json_values(make_config()), now, tmp_path, SECTION_FUNCTIONS) == []
    with pytest.raises(UserError, match=r"model\.dtype was 'bfloat16' and is 'auto'"):
        check_resume(
            to_json_values(make_config(model__dtype='bfloat16')), now, tmp_path, SECTION_FUNCTIONS
        )


def test_legacy_default_comes_before_the_default(tmp_path):
    """A changed default of a function does not silently change an older run."""

    def mix(peak_lr, decay='constant'):
        return peak_lr, decay

    functions = {'optimizer': mix}
    same = make_config(optimizer__decay='cosine')
    assert check_resume(to_json_values(make_config()), same, tmp_path, functions) == []
    with pytest.raises(UserError, match=r"optimizer\.decay was 'cosine' and is 'constant'"):
        check_resume(
            to_json_values(make_config()),
            make_config(optimizer__decay='constant'),
            tmp_path,
            functions,
        )


def test_legacy_default_of_a_source_comes_before_the_default(tmp_path):
    def read_rows(path, rules=2):
        return path, rules

    functions = SECTION_FUNCTIONS | {'data.sources.a': read_rows}
    before = to_json_values(make_config())
    same = make_config(data__sources__a__rules=1)
    assert check_resume(before, same, tmp_path, functions) == []
    with pytest.raises(UserError, match=r'data\.sources\.a\.rules was 1 and is 2\.'):
        check_resume(before, make_config(), tmp_path, functions)


def test_older_run_resumes_with_a_new_section_at_its_defaults(tmp_path):
    def smooth(radius=0, shape='box'):
        return radius, shape

    functions = {'smoothing': smooth}
    now = make_config() | {'smoothing': {'radius': 0, 'shape': 'box'}}
    assert check_resume(to_json_values(make_config()), now, tmp_path, functions) == []
    with pytest.raises(UserError, match=r'smoothing\.radius was 0 and is 2\. '):
        check_resume(
            to_json_values(make_config()),
            make_config() | {'smoothing': {'radius': 2}},
            tmp_path,
            functions,
        )


def test_removed_key_is_an_error(tmp_path):
    """No function has the key, so its default is unknown."""
    before = to_json_values(make_config(model__depth=3))
    with pytest.raises(UserError, match=r'model\.depth was 3 and is None\. '):
        check_resume(before, make_config(), tmp_path, SECTION_FUNCTIONS)


def test_new_source_and_changed_kind_are_an_error(tmp_path):
    functions = SECTION_FUNCTIONS | {'data.sources.b': Jsonl}
    added = make_config(data__sources__b={'kind': 'jsonl', 'path': 'x'})
    with pytest.raises(UserError, match=r"data\.sources\.b\.kind was None and is 'jsonl'"):
        check_resume(to_json_values(make_config()), added, tmp_path, functions)
    changed = make_config(data__sources__a__kind='csv')
    with pytest.raises(
        UserError, match=r": data\.sources\.a\.kind was 'jsonl' and is 'csv'\. Restore"
    ):
        check_resume(to_json_values(make_config()), changed, tmp_path, SECTION_FUNCTIONS)


def test_key_without_default_must_not_be_omitted(tmp_path):
    now = make_config()
    del now['optimizer']['peak_lr']
    with pytest.raises(UserError, match='optimizer.peak_lr was 0.001 and is None'):
        check_resume(make_config(), now, tmp_path)


def test_config_is_read_back_from_its_file(tmp_path):
    write_config(tmp_path, make_config())
    assert json.loads((tmp_path / 'config.json').read_text()) == to_json_values(make_config())
    assert to_json_values(make_config())['data']['sources']['a']['group'] == ['x', 'y']


@pytest.mark.parametrize('name', ['config.json', 'data.json', 'metrics.jsonl'])
def test_directory_in_the_place_of_a_file_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f'{name} is a directory, where a run writes a file'):
        check_workdir(tmp_path)


def test_config_of_a_pretrained_model_is_not_overwritten(tmp_path):
    check_workdir(tmp_path / 'not there')
    write_config(tmp_path, {'train': {}})
    check_workdir(tmp_path)
    for content in ('{"model_type": "opt"}', 'no JSON', '', '3', '["train"]', '[' * 10_000):
        (tmp_path / 'config.json').write_text(content)
        with pytest.raises(
            UserError,
            match='config.json is not the config of a run, and would be overwritten: give another '
            '--workdir',
        ):
            check_workdir(tmp_path)
