"""Configs: each section contains the keyword arguments of one function.

A run stores its config and can only be resumed with one that would have trained the same model.
"""

import inspect
import json
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from cpt_jax.runs.config_types import check_type
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.atomic_write import write_atomically
from cpt_jax.storage.paths import make_absolute

T = TypeVar('T')

# Keys that may change when a run is resumed: its length, its logs and checkpoints, its devices and
# the order of its operations. None of them changes what the run has learned so far. An entry that
# ends in a dot is a whole section.
CHANGEABLE_KEYS = (
    'train.steps',
    'train.epochs',
    'train.log_every',
    'train.encode_chunks',
    'train.profile_steps',
    'train.compiler_options',
    'train.wandb',
    'checkpoint.',
    'evaluation.',
    'mesh.',
    'loss.form',
    'loss.chunks',
    'loss.guide',  # its vectors are compared by fingerprint (cpt_jax/training/setup.py)
    'loss.teacher',  # as loss.guide
    'model.remat',
    'model.attention',
    'model.layer_loop',
    'model.gradient_sums',
    'data.packed',
    'data.rows',
    'data.row_choices',
    'data.threads',
    'data.prefetch',
    'data.verify',
    'data.token_cache_mib',
)

# Keys of a source that say where its data are. They may change if the data are the same.
SOURCE_PATHS = ('path', 'data_dir')

# Values of keys for runs that were started before the key existed. A key needs an entry only if the
# default in its section's function differs from the old behaviour, or if no function has the key.
# Entries stay even if they equal the default of today: a later default must not change an old run.
LEGACY_DEFAULTS = {
    'objective': 'contrastive',  # a key of the top level, so no function has it; lm came later
    'prompt.template': '',  # texts were enclosed in the tokenizer's delimiters
    'prompt.text_tokens': 0,  # texts were truncated only by data.max_tokens_*
    'prompt.begin_token': 'always',  # BOS was put before texts even if the tokenizer adds none
    'loss.train_temperature': True,  # the temperature was always trained
    'optimizer.decay': 'cosine',  # the only schedule
    'lora.rank': 0,  # all parameters were trained
    'tokenizer.delimiters': 'paper',  # no run had the special tokens of a pretrained model
    'tokenizer.closing': 'own',  # each side had a closing delimiter of its own
    'model.pooling': 'eos',  # the only pooling in training
    'data.equal_texts': 'stripped',  # texts were compared without white space at their ends
    'init_from': '',  # a key of the top level; every run was from scratch
}

# As LEGACY_DEFAULTS, for the arguments of a source's class.
LEGACY_SOURCE_DEFAULTS = {
    'rules': 1,  # cpt_jax/data/rows.py describes the rules by which rows are read
}


def build(function: Callable[..., T], name: str, section: Mapping[str, Any], **given: Any) -> T:
    """Returns `function(**section, **given)`, after checking the keys of the section.

    Args:
      function: the function or class whose keyword arguments the section contains.
      name: name of the section, for messages.
      section: the section of the config.
      given: arguments that do not come from the config.

    Raises:
      UserError: see `check_section`.
    """
    check_section(function, name, section, given)
    return function(**section, **given)


def check_section(
    function: Callable, name: str, section: Mapping[str, Any], given: Container[str]
) -> None:
    """Checks that the keys of a section are arguments of a function, and the types of the values.

    Args:
      function: the function whose keyword arguments the section contains.
      name: name of the section, for messages.
      section: the section of the config.
      given: names of the arguments that do not come from the config.

    Raises:
      UserError: a key is not an argument of the function, an argument without a default has no key,
        or a value is of another type than the argument.
    """
    known = {
        key: parameter
        for key, parameter in inspect.signature(function).parameters.items()
        if key not in given
    }
    for key, value in section.items():
        if key not in known:
            raise UserError(f'unknown config key {name}.{key}: {name} has {", ".join(known)}')
        check_type(f'{name}.{key}', value, known[key].annotation)
    for key, parameter in known.items():
        if key not in section and parameter.default is inspect.Parameter.empty:
            raise UserError(f'config key {name}.{key} is missing')


def flatten(config: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Yields ('section.key', value) of every leaf. An empty section is a leaf too."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


def to_json_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config as it is read back from a JSON file: tuples become lists."""
    return json.loads(json.dumps(config))


def get_defaults(function: Callable) -> dict[str, Any]:
    """Returns the defaults of a function's arguments, as they are read back from a JSON file.

    Defaults that JSON cannot hold are omitted, because no config can contain them.
    """
    defaults = {}
    for key, parameter in inspect.signature(function).parameters.items():
        if parameter.default is not inspect.Parameter.empty and _is_plain(parameter.default):
            defaults[key] = parameter.default
    return to_json_values(defaults)


def _is_plain(value: object) -> bool:
    """Whether a value consists of tuples, lists, numbers, strings, bools and None."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def fill_missing(
    leaves: Mapping[str, Any], functions: Mapping[str, Callable[..., Any]]
) -> dict[str, Any]:
    """Returns the leaves of a config, and the defaults of the keys that the config lacks.

    Args:
      leaves: value by 'section.key'.
      functions: section -> the function whose keyword arguments the section contains. Each source
        is a section too ('data.sources.NAME').
    """
    filled: dict[str, Any] = {}
    for section, function in functions.items():
        filled |= {f'{section}.{key}': value for key, value in get_defaults(function).items()}
    # `flatten` yields a section without keys as a leaf.
    present = {key: value for key, value in leaves.items() if key not in functions}
    return filled | present


def fill_legacy_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a stored config, and LEGACY_DEFAULTS for the keys that it lacks."""
    filled = dict(config)
    for name, value in LEGACY_DEFAULTS.items():
        section, _, key = name.rpartition('.')
        if section:
            filled[section] = {key: value, **(filled.get(section) or {})}
        else:
            filled.setdefault(key, value)
    return filled


def check_resume(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    workdir: Path,
    functions: Mapping[str, Callable[..., Any]] | None = None,
) -> list[str]:
    """Checks that a run can be resumed with a config.

    Args:
      before: the config that the run stored, possibly written by older code.
      now: the config to resume with.
      workdir: the run's directory, for the message.
      functions: function of each section, as for `fill_missing`. A key that one of the configs
        lacks counts as set to its default.

    Returns:
      A line 'key: old -> new' for each changed key in CHANGEABLE_KEYS.

    Raises:
      UserError: another key differs, which would change what is learned.
    """
    # Legacy defaults come first for the old config, and the defaults of today for the new one.
    legacy = LEGACY_DEFAULTS | _get_legacy_source_defaults(functions or {})
    old = fill_missing(legacy | dict(flatten(before)), functions or {})
    new = LEGACY_DEFAULTS | fill_missing(dict(flatten(to_json_values(now))), functions or {})
    # Without adapters, the other keys of the section have no effect.
    if not old['lora.rank'] and not new['lora.rank']:
        old = _remove_section(old, 'lora')
        new = _remove_section(new, 'lora')
    allowed = []
    refused = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key):
            continue
        if _is_changeable(key, new):
            allowed.append(f'{key}: {old.get(key)!r} -> {new.get(key)!r}')
        else:
            refused.append(f'{key} was {old.get(key)!r} and is {new.get(key)!r}')
    if refused:
        raise UserError(
            f'{workdir} holds a run of another config: {"; ".join(refused)}. Restore the old '
            f'value, or give another --workdir'
        )
    return allowed


def _get_legacy_source_defaults(functions: Mapping[str, Callable[..., Any]]) -> dict[str, Any]:
    """Returns LEGACY_SOURCE_DEFAULTS by 'data.sources.NAME.KEY', for the sources in `functions`."""
    return {
        f'{section}.{key}': value
        for section, function in functions.items()
        if section.startswith('data.sources.')
        for key, value in LEGACY_SOURCE_DEFAULTS.items()
        if key in inspect.signature(function).parameters
    }


def _is_changeable(key: str, leaves: Mapping[str, Any]) -> bool:
    """Returns whether a key may change in a run that goes on with these values."""
    if key == 'evaluation.pairs' and _compares_scores(leaves):
        return False
    # The contents are compared by fingerprint (cpt_jax/training/setup.py).
    if key.startswith('data.sources.') and key.rpartition('.')[2] in SOURCE_PATHS:
        return True
    return any(
        key == free or (free.endswith('.') and key.startswith(free)) for free in CHANGEABLE_KEYS
    )


def _compares_scores(leaves: Mapping[str, Any]) -> bool:
    """Returns whether held-out scores of different steps are compared. Those among different
    numbers of pairs cannot be.
    """
    return bool(leaves.get('checkpoint.keep_best') or leaves.get('evaluation.patience'))


def _remove_section(leaves: Mapping[str, Any], section: str) -> dict[str, Any]:
    return {key: value for key, value in leaves.items() if not key.startswith(f'{section}.')}


def check_workdir(workdir: Path) -> None:
    """Raises UserError if a directory cannot be that of a run: it has a foreign config.json, or a
    directory in the place of a file, or its path is a pattern.

    The directory may hold somebody's pretrained model, whose config.json a run would overwrite.
    """
    # Orbax looks for the files that the processes wrote with glob, without escaping the directory.
    # It would find none, and write checkpoints that cannot be read.
    if found := set('[]*?') & set(str(make_absolute(workdir))):
        raise UserError(
            f'--workdir {workdir}: checkpoints cannot be written where a path contains '
            f'{" ".join(sorted(found))}: give another --workdir'
        )
    run = RunDir(workdir)
    for path in (run.config, run.data, run.metrics):
        if path.is_dir():
            raise UserError(f'{path} is a directory, where a run writes a file: remove it')
    path = run.config
    try:
        content = json.loads(path.read_bytes()) if path.exists() else {'train': {}}
    except (ValueError, RecursionError):
        # A run's own file may have been cut short; its checkpoints have the config too.
        content = {'train': {}} if run.checkpoints.is_dir() else None
    if not isinstance(content, dict) or 'train' not in content:
        raise UserError(
            f'{path} is not the config of a run, and would be overwritten: give another --workdir'
        )


def write_config(workdir: Path, config: Mapping[str, Any]) -> None:
    """Writes config.json into a run's directory."""
    write_atomically(RunDir(workdir).config, json.dumps(config, indent=2) + '\n')
