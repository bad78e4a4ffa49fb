"""Configs: a section is the keyword arguments of one function, and a run keeps the one that it began with."""

import inspect
import json
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from cpt_jax.atomic import write_atomically
from cpt_jax.errors import UserError

T = TypeVar('T')

# What may change between the parts of a run: how far it goes, what it writes down, where and in which order of operations it computes.
# None of these changes what was learned so far. A prefix that ends in a dot stands for its section.
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


# Of runs from before there was a choice.
_BEFORE = {
    'objective': 'contrastive',
    'prompt.template': '',
    'prompt.text_tokens': 0,
    'loss.train_temperature': True,
    'optimizer.decay': 'cosine',
    'lora.rank': 0,
}


def build(function: Callable[..., T], name: str, section: Mapping[str, Any], **given: Any) -> T:
    """Calls `function` with a section of the config, and with what the config does not know.

    Raises:
      UserError: see `check_section`.
    """
    check_section(function, name, section, given)
    return function(**section, **given)


def check_section(function: Callable, name: str, section: Mapping[str, Any], given: Container[str]) -> None:
    """Compares the keys of a section with the arguments of a function, but for those that are `given` otherwise.

    Raises:
      UserError: the section has a key that is no argument of the function, or lacks one without a default.
    """
    known = {key: parameter for key, parameter in inspect.signature(function).parameters.items() if key not in given}
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


def check_resume(before: Mapping[str, Any], now: Mapping[str, Any], workdir: Path) -> list[str]:
    """Compares a run's config with the one that it is started with again; returns a line for each change that is allowed.

    Raises:
      UserError: a key differs that decides what was learned.
    """
    old, new = (_BEFORE | dict(flatten(config)) for config in (before, as_json(now)))
    if not old['lora.rank'] and not new['lora.rank']:  # the other keys of it then count for nothing
        old, new = ({key: value for key, value in config.items() if not key.startswith('lora.')} for config in (old, new))
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    allowed = [key for key in changed if any(key == free or (free.endswith('.') and key.startswith(free)) for free in CHANGEABLE)]
    refused = [f'{key} was {old.get(key)!r} and is {new.get(key)!r}' for key in changed if key not in allowed]
    if refused:
        raise UserError(f'{workdir} holds a run of another config: {"; ".join(refused)}. Set it back, or give another --workdir')
    return [f'{key}: {old.get(key)!r} -> {new.get(key)!r}' for key in allowed]


def check_workdir(workdir: Path) -> None:
    """Raises UserError where a directory has a config.json that is none of a run: somebody's model, whose own would be lost."""
    path = workdir / 'config.json'
    try:
        of_a_run = not path.exists() or 'train' in json.loads(path.read_bytes())
    except ValueError:
        of_a_run = False
    if not of_a_run:
        raise UserError(f'{path} is none of a run, and would be overwritten: give another --workdir')


def write_config(workdir: Path, config: Mapping[str, Any]) -> None:
    """Writes config.json into a run's directory."""
    write_atomically(workdir / 'config.json', json.dumps(config, indent=2) + '\n')
