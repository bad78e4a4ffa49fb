"""The flag --config FILE.py[:ARGUMENT], and the flags --config.section.key=value that change it."""

import collections.abc
import difflib
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from cpt_jax.runs.config_file import ConfigFile, find_config
from cpt_jax.runtime.errors import UserError

# Key flags of the program that calls define_config, which shows them in its --help.
flags.disclaim_key_flags()

_SEQUENCES = (collections.abc.Sequence, tuple)

# What a user looks for who comes from another trainer.
ACCUMULATION = (
    ' Gradient accumulation is not offered: each micro-batch would see only its own negatives, '
    'which is another loss than that of the batch; train.encode_chunks saves the same memory and '
    'is exact.'
)


def define_config() -> Callable[[], tuple[str, ConfigDict]]:
    """Defines --config, whose keys are set with --config.section.key=value; returns its reader.

    The reader returns the config's name and the config. It raises UserError if --config is missing;
    parsing the flags raises it for a file, an argument or a key that cannot be used.
    """
    example = 'such as configs/quickstart.py or configs/prompteol.py:opt-13b'
    config_flags.DEFINE_config_file(
        'config', None, f'A file with get_config(), and its argument if it takes one, {example}.'
    )
    # ml_collections' own parser loads the file too, but with a traceback for each mistake, and it
    # knows no defaults of sources.
    parser = ConfigParser()
    flags.FLAGS['config'].parser = parser

    def read() -> tuple[str, ConfigDict]:
        if parser.file is None:
            raise UserError('--config is missing: give a file such as configs/quickstart.py')
        return parser.file.name, ConfigDict(flags.FLAGS['config'].value)

    return read


class ConfigParser(flags.ArgumentParser):
    """Loads the file that --config names, and checks the keys that other flags set.

    Attributes:
      file: the file that was loaded last; None before that.
    """

    def __init__(self) -> None:
        self.file: ConfigFile | None = None

    def parse(self, argument: str) -> ConfigDict:
        if not argument:
            raise UserError('--config is missing: give a file such as configs/quickstart.py')
        try:
            self.file = find_config(argument)
            config = self.file.load()
        except UserError as error:
            raise UserError(f'--config {error}') from error
        # ml_collections reads the same command line, after this, for the keys that it sets.
        words = flags.FLAGS.read_flags_from_files(sys.argv, force_gnu=False)
        admit_keys(config, given_keys(words))
        config.lock()
        return config

    def flag_type(self) -> str:
        return 'config file'


def given_keys(words: Sequence[str]) -> dict[str, str]:
    """Returns the value, as typed, of each key that a command line sets with --config.KEY=VALUE,
    --config.KEY VALUE, --config.KEY or --noconfig.KEY.
    """
    given = {}
    for word, following in zip(words, [*words[1:], ''], strict=True):
        match = re.fullmatch(r'--?(?:no)?config\.([^=]+)(?:=(.*))?', word, re.DOTALL)
        if match:
            key, value = match.groups()
            given[key] = following if value is None else value
    return given


def admit_keys(config: ConfigDict, given: Mapping[str, str]) -> None:
    """Checks that a config has the keys that flags set. Adds those that it leaves to the default of
    a source, with a value of their type, which the flag then replaces.

    Args:
      config: the config as its file returns it; changed in place.
      given: by key, the value as typed.

    Raises:
      UserError: neither the config nor, within data.sources.NAME, the source's class has a key.
    """
    for key in given:
        *section, name = key.split('.')
        if section[:2] == ['data', 'sources'] and len(section) == 3:
            _admit_source_key(config, section, name, given)
        else:
            _check_key(config, key)


def _check_key(config: ConfigDict, key: str) -> None:
    section: Any = config
    above = ''
    for name in key.split('.'):
        if not isinstance(section, ConfigDict):
            raise UserError(f'--config.{key}: {above} is a value: set it with --config.{above}=')
        listed = name.partition('[')[0]
        if isinstance(section.get(listed), list):  # KEY[0] is an element of a list
            name = listed
        if name not in section:
            raise _no_key(
                key, name, above or 'a config', section.keys(), 'configs/base.py explains the keys'
            )
        section = section[name]
        above = f'{above}.{name}'.lstrip('.')


def _admit_source_key(
    config: ConfigDict, section: Sequence[str], name: str, given: Mapping[str, str]
) -> None:
    """Checks, and adds where it is missing, one key of data.sources.NAME."""
    where = '.'.join(section)
    _check_key(config, where)
    source = config['data']['sources'][section[2]]
    if name in source:
        return
    # Here, because it takes seconds, and imports JAX, whose platform a program must choose first.
    from cpt_jax.data.mixture import KINDS, source_arguments

    kind = given.get(f'{where}.kind', source.get('kind'))
    if kind not in KINDS:  # make_sources reports it
        _check_key(config, f'{where}.{name}')
        return
    arguments = source_arguments(kind)
    if name not in arguments:
        known = ['kind', 'weight', *arguments]
        raise _no_key(
            f'{where}.{name}', name, where, known, f'{KINDS[kind].__module__} explains the keys'
        )
    source[name] = value_of_type(arguments[name])


def value_of_type(parameter: inspect.Parameter) -> Any:
    """Returns a value by whose type ml_collections chooses how to read a flag: a tuple for a
    sequence or for one name of several, else a bool, int, float or str.
    """
    annotation = parameter.annotation
    is_union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    choices = typing.get_args(annotation) if is_union else (annotation,)
    if any(typing.get_origin(choice) in _SEQUENCES for choice in choices):
        return ()
    for plain in (bool, int, float, str):
        if plain in choices:
            return plain()
    raise TypeError(f'{parameter}: no flag can hold it')


def _no_key(key: str, name: str, where: str, known: Iterable[str], more: str) -> UserError:
    """Returns the error for a flag whose key is in no section: with the nearest that is there."""
    if 'accum' in name:
        return UserError(f'--config.{key}: there is no key {name}.{ACCUMULATION}')
    names = list(known)
    near = difflib.get_close_matches(name, names, 1)
    hint = f'did you mean {near[0]}? ' if near else ''
    return UserError(
        f'--config.{key}: there is no key {name}; {hint}{where} has {", ".join(names)} ({more})'
    )
