"""The flags --config FILE.py[:ARGUMENT] and --config.section.key=value."""

import collections.abc
import difflib
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from cpt_jax.runs.config import flatten
from cpt_jax.runs.config_file import ConfigFile, find_config, load_config
from cpt_jax.runtime.errors import UserError

# absl lists these flags in the --help of the program that calls define_config_flag.
flags.disclaim_key_flags()

_SEQUENCES = (collections.abc.Sequence, tuple)

# Users of other trainers look for this option; the message explains why it does not exist.
ACCUMULATION = (
    ' Gradient accumulation is not offered: each microbatch would see only its own negatives, '
    'which changes the loss; use train.encode_chunks, which saves the same memory and is exact.'
)


class ConfigFlags(NamedTuple):
    """What the flags say.

    Attributes:
      name: name of the config, see `ConfigFile.name`.
      config: the config with the keys of the flags.
      given: keys that flags have set.
    """

    name: str
    config: ConfigDict
    given: frozenset[str]


def define_config_flag() -> Callable[[], ConfigFlags]:
    """Defines --config and --config.section.key=value; returns a function that reads them.

    The returned function raises UserError if --config is missing. Parsing the flags raises
    UserError for a file, argument or key that cannot be used.
    """
    example = 'such as configs/quickstart.py or configs/prompteol.py:opt-13b'
    config_flags.DEFINE_config_file(
        'config',
        None,
        f'Python file with get_config(), followed by :ARGUMENT if it takes one, {example}.',
    )
    # ml_collections' own parser prints a traceback for every mistake in the file, and it does not
    # know the default arguments of data sources.
    parser = ConfigParser()
    flags.FLAGS['config'].parser = parser

    def read_config() -> ConfigFlags:
        if parser.file is None:
            raise UserError('--config is missing: give a file such as configs/quickstart.py')
        return ConfigFlags(parser.file.name, ConfigDict(flags.FLAGS['config'].value), parser.given)

    return read_config


class ConfigParser(flags.ArgumentParser):
    """Parser of --config that loads the file and checks the keys that --config.KEY flags set.

    Attributes:
      file: the file that was loaded last; None before the first.
      given: keys that --config.KEY flags set.
    """

    def __init__(self) -> None:
        self.file: ConfigFile | None = None
        self.given: frozenset[str] = frozenset()

    def parse(self, argument: str) -> ConfigDict:
        if not argument:
            raise UserError('--config is missing: give a file such as configs/quickstart.py')
        try:
            self.file = find_config(argument)
            config = self.file.load()
        except UserError as error:
            raise UserError(f'--config {error}') from error
        # After this, ml_collections reads the same command line to set the keys.
        words = flags.FLAGS.read_flags_from_files(sys.argv, force_gnu=False)
        given = find_given_keys(words)
        self.given = frozenset(given)
        check_given_keys(config, given)
        config.lock()
        return config

    def flag_type(self) -> str:
        return 'config file'


def find_given_keys(words: Sequence[str]) -> dict[str, str]:
    """Returns the keys that a command line sets, with their values as typed.

    The forms are --config.KEY=VALUE, --config.KEY VALUE, --config.KEY and --noconfig.KEY.
    """
    given = {}
    for word, following in zip(words, [*words[1:], ''], strict=True):
        match = re.fullmatch(r'--?(?:no)?config\.([^=]+)(?:=(.*))?', word, re.DOTALL)
        if match:
            key, value = match.groups()
            given[key] = following if value is None else value
    return given


def check_given_keys(config: ConfigDict, given: Mapping[str, str]) -> None:
    """Checks that a config has every key that a flag sets.

    An argument of a data source that has its default in the config is first added to the config,
    with a placeholder of its type, because ml_collections can only replace keys that exist.

    Args:
      config: the config as its file returns it; changed in place.
      given: values as typed, by key.

    Raises:
      UserError: a key is neither in the config nor an argument of the source's class.
    """
    for key in given:
        *section, name = key.split('.')
        if section[:2] == ['data', 'sources'] and len(section) == 3:
            _check_source_key(config, section, name, given)
        else:
            _check_key(config, key)


def _check_key(config: ConfigDict, key: str) -> None:
    """Raises UserError if the config has no such key."""
    section: Any = config
    parent = ''
    for name in key.split('.'):
        if not isinstance(section, ConfigDict):
            raise UserError(f'--config.{key}: {parent} is a value: set it with --config.{parent}=')
        list_name = name.partition('[')[0]
        if isinstance(section.get(list_name), list):  # KEY[0] is an element of a list
            name = list_name
        if name not in section:
            raise _make_unknown_key_error(
                key, name, parent or 'a config', section.keys(), 'configs/base.py explains the keys'
            )
        section = section[name]
        parent = f'{parent}.{name}'.lstrip('.')


def _check_source_key(
    config: ConfigDict, section: Sequence[str], name: str, given: Mapping[str, str]
) -> None:
    """Checks one key of data.sources.NAME; adds it to the config if it is missing there."""
    where = '.'.join(section)
    _check_key(config, where)
    source = config['data']['sources'][section[2]]
    if name in source:
        return
    # Imported here because it takes seconds and imports JAX, whose platform must be chosen first.
    from cpt_jax.data.mixture import KINDS, get_source_arguments
    from cpt_jax.data.source_keys import SOURCE_KEYS

    kind = given.get(f'{where}.kind', source.get('kind'))
    if kind not in KINDS:  # make_sources reports the unknown kind
        _check_key(config, f'{where}.{name}')
        return
    if name in SOURCE_KEYS:
        source[name] = make_placeholder(SOURCE_KEYS[name])
        return
    arguments = get_source_arguments(kind)
    if name not in arguments:
        known = [*SOURCE_KEYS, *arguments]
        raise _make_unknown_key_error(
            f'{where}.{name}', name, where, known, f'{KINDS[kind].__module__} explains the keys'
        )
    source[name] = make_placeholder(arguments[name].annotation)


def suggest_config_key(name: str) -> str:
    """Returns the end of a message about an unknown flag: the keys of a config with its name; '' if
    there is none.
    """
    keys = [key for key, _ in flatten(load_config('configs/base.py'))]
    found = [key for key in keys if key == name or key.endswith(f'.{name}')]
    return f'; did you mean {" or ".join(f"--config.{key}" for key in found)}?' if found else ''


def make_placeholder(annotation: Any) -> Any:
    """Returns a value whose type makes ml_collections parse the flag of a key correctly.

    It is an empty tuple for a key that accepts a sequence, else the zero value of bool, int, float
    or str.

    Args:
      annotation: type of the key's values.
    """
    is_union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    choices = typing.get_args(annotation) if is_union else (annotation,)
    if any(typing.get_origin(choice) in _SEQUENCES for choice in choices):
        return ()
    for plain in (bool, int, float, str):
        if plain in choices:
            return plain()
    raise TypeError(f'{annotation}: its type cannot be given as a flag')


def _make_unknown_key_error(
    key: str, name: str, where: str, known: Iterable[str], more: str
) -> UserError:
    """Returns the error for an unknown key, with the closest known key as a hint.

    Args:
      key: the full key as typed, without --config.
      name: the unknown part of it.
      where: the section that should have contained it.
      known: the keys of that section.
      more: where the keys are explained.
    """
    if 'accum' in name:
        return UserError(f'--config.{key}: there is no key {name}.{ACCUMULATION}')
    names = list(known)
    near = difflib.get_close_matches(name, names, 1)
    hint = f'did you mean {near[0]}? ' if near else ''
    return UserError(
        f'--config.{key}: there is no key {name}; {hint}{where} has {", ".join(names)} ({more})'
    )
