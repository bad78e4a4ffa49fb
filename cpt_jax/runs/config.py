"""Configs: a section holds the keyword arguments of one function, and a run keeps the config that
it began with.
"""

import inspect
import json
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.atomic_write import write_atomically

T = TypeVar('T')

# What may change between the parts of a run: how far it goes, what it writes down, where and in
# which order of operations it computes. None of these changes what was learned so far. A prefix
# that ends in a dot stands for its section.
CHANGEABLE = (
    'train.steps',
    'train.log_every',
    'train.encode_chunks',
    'checkpoint.',
    'evaluation.',
    'mesh.',
    'loss.form',
    'loss.chunks',
    'model.remat',
    'model.attention',
    'model.layer_loop',
    'data.packed',
    'data.rows',
    'data.row_choices',
    'data.threads',
    'data.prefetch',
)

# What a key means to a run that was started before the key existed. A key needs a line here only
# if the default of its section's function would change what such a run means, or if no function
# has it. The lines stay even where both agree today: a later default must not change an old run.
MEANING_BEFORE = {
    'objective': 'contrastive',  # at the top level, so no function has it; lm came later
    'prompt.template': '',  # texts stood between the tokenizer's delimiters
    'prompt.text_tokens': 0,  # cut by data.max_tokens_* only
    'loss.train_temperature': True,  # the temperature was always trained
    'optimizer.decay': 'cosine',  # the only schedule
    'lora.rank': 0,  # all parameters were trained
    'tokenizer.closing': 'own',  # each side ended in a delimiter of its own
    'init_from': '',  # at the top level; every run was from scratch
}


def build(function: Callable[..., T], name: str, section: Mapping[str, Any], **given: Any) -> T:
    """Calls `function` with a section of the config, and with what the config does not know.

    Raises:
      UserError: see `check_section`.
    """
    check_section(function, name, section, given)
    return function(**section, **given)


def check_section(
    function: Callable, name: str, section: Mapping[str, Any], given: Container[str]
) -> None:
    """Compares the keys of a section with the arguments of a function, but for those that are
    `given` otherwise.

    Raises:
      UserError: the section has a key that is no argument of the function, or lacks one without a
        default.
    """
    known = {
        key: parameter
        for key, parameter in inspect.signature(function).parameters.items()
        if key not in given
    }
    for key in section:
        if key not in known:
            raise UserError(f'unknown config key {name}.{key}: {name} has {", ".join(known)}')
    for key, parameter in known.items():
        if key not in section and parameter.default is inspect.Parameter.empty:
            raise UserError(f'config key {name}.{key} is missing')


def flatten(config: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    """('section.key', value) of every leaf."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


def as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as it comes back from a JSON file: tuples are lists."""
    return json.loads(json.dumps(config))


def defaults_of(function: Callable) -> dict[str, Any]:
    """Returns the defaults of a function's arguments, as they come back from a JSON file.

    Defaults that JSON cannot hold are left out: no config has them.
    """
    found = {}
    for key, parameter in inspect.signature(function).parameters.items():
        if parameter.default is not inspect.Parameter.empty and _is_plain(parameter.default):
            found[key] = parameter.default
    return as_json(found)


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def fill_missing(
    leaves: Mapping[str, Any], functions: Mapping[str, Callable[..., Any]]
) -> dict[str, Any]:
    """Returns the leaves of a config with the defaults of the keys that it does not have.

    Args:
      leaves: values by 'section.key'.
      functions: by section, the function whose keyword arguments the section holds; a source is a
        section too ('data.sources.NAME').
    """
    filled: dict[str, Any] = {}
    for section, function in functions.items():
        filled |= {f'{section}.{key}': value for key, value in defaults_of(function).items()}
    # `flatten` gives a section without keys as a leaf.
    present = {key: value for key, value in leaves.items() if key not in functions}
    return filled | present


def with_meaning_before(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config of a run with the keys of MEANING_BEFORE that its code did not have."""
    found = dict(config)
    for name, value in MEANING_BEFORE.items():
        section, _, key = name.rpartition('.')
        if section:
            found[section] = {key: value, **(found.get(section) or {})}
        else:
            found.setdefault(key, value)
    return found


def check_resume(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    workdir: Path,
    functions: Mapping[str, Callable[..., Any]] | None = None,
) -> list[str]:
    """Compares a run's config with the one that it is continued with; returns a line for each
    change that is allowed.

    Args:
      before: the config that the run keeps, possibly written by older code.
      now: the config that it is started with.
      workdir: the run's directory, for the message.
      functions: the function of each section, as for `fill_missing`. A key that one of the configs
        lacks counts as set to its default.

    Raises:
      UserError: a key differs that decides what was learned.
    """
    # What the old config lacks has its old meaning; what the new one lacks, today's default.
    old = fill_missing(MEANING_BEFORE | dict(flatten(before)), functions or {})
    new = MEANING_BEFORE | fill_missing(dict(flatten(as_json(now))), functions or {})
    # Without adapters the section's other keys have no effect.
    if not old['lora.rank'] and not new['lora.rank']:
        old, new = _without_section(old, 'lora'), _without_section(new, 'lora')
    allowed, refused = [], []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key):
            continue
        if _is_changeable(key):
            allowed.append(f'{key}: {old.get(key)!r} -> {new.get(key)!r}')
        else:
            refused.append(f'{key} was {old.get(key)!r} and is {new.get(key)!r}')
    if refused:
        raise UserError(
            f'{workdir} holds a run of another config: {"; ".join(refused)}. Set it '
            f'back, or give another --workdir'
        )
    return allowed


def _is_changeable(key: str) -> bool:
    return any(key == free or (free.endswith('.') and key.startswith(free)) for free in CHANGEABLE)


def _without_section(leaves: Mapping[str, Any], section: str) -> dict[str, Any]:
    return {key: value for key, value in leaves.items() if not key.startswith(f'{section}.')}


def check_workdir(workdir: Path) -> None:
    """Raises UserError where a directory has a config.json that is none of a run: somebody's model,
    whose own would be lost.
    """
    path = RunDir(workdir).config
    try:
        of_a_run = not path.exists() or 'train' in json.loads(path.read_bytes())
    except ValueError:
        of_a_run = False
    if not of_a_run:
        raise UserError(
            f'{path} is none of a run, and would be overwritten: give another --workdir'
        )


def write_config(workdir: Path, config: Mapping[str, Any]) -> None:
    """Writes config.json into a run's directory."""
    write_atomically(RunDir(workdir).config, json.dumps(config, indent=2) + '\n')
