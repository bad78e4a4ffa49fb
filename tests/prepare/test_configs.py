import importlib
import inspect
from pathlib import Path

import pytest

import configs
from cpt_jax.prepare.plan import parse_source
from cpt_jax.prepare.registry import PAIR_RULES, READERS, get_arguments
from cpt_jax.prepare.settings import (
    Consistency,
    Decontamination,
    Duplicates,
    Filters,
    Output,
)
from cpt_jax.runs.config import check_section

FOLDER = Path(configs.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob('prepare_*.py'))
SECTIONS = {
    'filters': Filters,
    'duplicates': Duplicates,
    'decontamination': Decontamination,
    'consistency': Consistency,
    'output': Output,
}


@pytest.mark.parametrize('name', NAMES)
def test_config_has_every_key_and_valid_values(name):
    config = importlib.import_module(f'configs.{name}').get_config().to_dict()
    assert config.keys() == {'sources', 'tokenizer', *SECTIONS}
    for section, function in SECTIONS.items():
        check_section(function, section, config[section], ())
        assert config[section].keys() == inspect.signature(function).parameters.keys()
    for source, section in config['sources'].items():
        parse_source(source, section, '')


def test_arguments_of_readers_and_rules_have_different_names():
    """The keys of a source are the arguments of its reader and of its pair rule."""
    of_rules = {key for rule in PAIR_RULES.values() for key in get_arguments(rule.make_pairs)}
    for name, reader in READERS.items():
        assert not of_rules & get_arguments(reader.read).keys(), name
