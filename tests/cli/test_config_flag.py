"""Config keys and source arguments that are set on the command line."""

import inspect
import sys

import pytest
from ml_collections import ConfigDict

from cpt_jax.cli.config_flag import (
    ConfigParser,
    check_given_keys,
    find_given_keys,
    make_placeholder,
)
from cpt_jax.data.mixture import KINDS, get_source_arguments
from cpt_jax.runtime.errors import UserError


def make_config() -> ConfigDict:
    return ConfigDict(
        {
            'seed': 0,
            'train': {'steps': 10, 'batch_pairs': 4},
            'data': {
                'packed': True,
                'sources': {'pairs': {'kind': 'jsonl', 'weight': 1.0, 'path': 'x.jsonl'}},
            },
        }
    )


def test_given_keys_are_found_in_a_command_line():
    words = [
        'train.py', '--config', 'x.py', '--config.seed=3', '-config.train.steps', '7',
        '--noconfig.data.packed', '--config.data.sources.a.path=a=b', '--configs.x=1', '--other',
        '--config.train.batch_pairs',
    ]  # fmt: skip
    assert find_given_keys(words) == {
        'seed': '3',
        'train.steps': '7',
        'data.packed': '--config.data.sources.a.path=a=b',
        'data.sources.a.path': 'a=b',
        'train.batch_pairs': '',
    }


def test_keys_in_the_config_are_accepted_unchanged():
    config = make_config()
    check_given_keys(
        config, {'seed': '1', 'train.steps': '2', 'data.sources.pairs.path': 'y', 'data': ''}
    )
    assert config.to_dict() == make_config().to_dict()


@pytest.mark.parametrize(
    ('key', 'expected'),
    [
        (
            'train.stepz',
            '^--config.train.stepz: there is no key stepz; did you mean steps[?] train has '
            'batch_pairs, steps .configs/base.py explains the keys.$',
        ),
        ('sede', '^--config.sede: there is no key sede; did you mean seed[?] a config has data, '),
        ('qqq', '^--config.qqq: there is no key qqq; a config has data, seed, train '),
        ('train.steps.x', '^--config.train.steps.x: train.steps is a value: set it with'),
        ('train.steps[0]', 'there is no key steps.0.; did you mean steps[?]'),
        ('train.accumulation', 'Gradient accumulation is not offered: .*train.encode_chunks'),
        (
            'data.sources.pairs.max_bad',
            '^--config.data.sources.pairs.max_bad: there is no key max_bad; did you mean '
            'max_bad_share[?] data.sources.pairs has kind, weight, epochs, prompt_x, '
            'prompt_y, infonce, direction, in_batch, temperature, terms, path, x, y, negatives, '
            'id, group, holdout, max_bad_share, max_chars, codesearchnet, rules, scores, score '
            '.cpt_jax.data.sources.jsonl explains',
        ),
        ('data.sources.pairs.split', 'there is no key split'),  # only the run sets it
        ('data.sources.pairs.separator', 'there is no key separator'),  # of csv only
        ('data.sources.mine.path', 'there is no key mine; data.sources has pairs'),
        ('data.sources.pairs.path.x', 'data.sources.pairs.path is a value'),
    ],
)
def test_unknown_key_error_suggests_the_closest_key(key, expected):
    with pytest.raises(UserError, match=expected):
        check_given_keys(make_config(), {key: '1'})


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('max_bad_share', 0.0),
        ('max_chars', 0),
        ('codesearchnet', False),
        ('x', ''),
        ('group', ()),
    ],
)
def test_missing_source_argument_is_added_with_its_type(key, value):
    config = make_config()
    check_given_keys(config, {f'data.sources.pairs.{key}': '1'})
    added = config['data']['sources']['pairs'][key]
    assert added == value and type(added) is type(value)


def test_kind_flag_determines_the_source_arguments():
    config = make_config()
    keys = {'data.sources.pairs.separator': ';', 'data.sources.pairs.kind': 'csv'}
    check_given_keys(config, keys)
    assert config['data']['sources']['pairs']['separator'] == ''
    with pytest.raises(UserError, match='there is no key separator'):
        check_given_keys(make_config(), keys | {'data.sources.pairs.kind': 'no such kind'})


@pytest.mark.parametrize(
    ('kind', 'name'), [(kind, name) for kind in KINDS for name in get_source_arguments(kind)]
)
def test_every_source_argument_can_be_a_flag(kind, name):
    """The type is that of the default, or a tuple if the argument accepts several names."""
    parameter = get_source_arguments(kind)[name]
    value = make_placeholder(parameter.annotation)
    default = parameter.default
    if default not in (inspect.Parameter.empty, None) and not isinstance(value, tuple):
        assert type(value) is type(default)
    assert isinstance(value, tuple) == (name in ('group', 'packages') or (kind, name) == (
        'csv', 'negatives',
    ))  # fmt: skip


def test_parser_returns_a_locked_config(tmp_path, monkeypatch):
    path = tmp_path / 'own.py'
    path.write_text(
        'from configs import small_pairs\n\n\ndef get_config(seed="3"):\n'
        '  c = small_pairs.get_config()\n  c.seed = int(seed)\n  return c\n'
    )
    monkeypatch.setattr(sys, 'argv', ['train.py', '--config.data.sources.pairs.max_chars=9'])
    parser = ConfigParser()
    config = parser.parse(f'{path}:5')
    assert config.is_locked and config.seed == 5 and config.data.sources.pairs.max_chars == 0
    assert parser.file is not None and parser.file.name == 'own-5'
    with pytest.raises(UserError, match='^--config nowhere.py: no such file$'):
        parser.parse('nowhere.py')
