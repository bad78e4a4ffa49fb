"""The registry of the kinds of tasks, and the selection of tasks by name."""

import dataclasses
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from etils import epath

from cpt_jax.evals.options import Options, get_flag, parse_option
from cpt_jax.evals.suites import SUITES, expand_suites
from cpt_jax.evals.task import Context, Task, TaskKind, check_is_task
from cpt_jax.evals.tasks import bias, codesearch, knn, open_qa, probe, retrieval, sts, zeroshot
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.paths import is_remote
from cpt_jax.storage.remote import RemoteFiles, expand_home

# All kinds, in the order in which --tasks '*' runs them.
KINDS: tuple[TaskKind, ...] = (
    codesearch.KIND,
    retrieval.KIND,
    open_qa.KIND,
    sts.KIND,
    bias.KIND,
    probe.KIND,
    knn.KIND,
    zeroshot.KIND,
)


def find_option_fields() -> dict[str, dataclasses.Field]:
    """Returns the dataclass fields of the options of all kinds, by name.

    Raises:
      TypeError: two kinds declare an option of the same name. Declare it once, in options.py.
    """
    found: dict[str, dataclasses.Field] = {}
    for kind in KINDS:
        for field in dataclasses.fields(kind.options):
            # Kinds that inherit an option from a common base class have the same Field object.
            if found.setdefault(field.name, field) is not field:
                raise TypeError(
                    f'the option {field.name} of {kind.name}/* is declared by another kind too: '
                    f'declare it once, in a base class in evals/options.py'
                )
    return found


def make_options(**chosen: Any) -> dict[str, Options]:
    """Returns the options of each kind, by the kind's name.

    Args:
      chosen: values of options by name. The other options have their defaults.

    Raises:
      UserError: a value is not accepted.
      TypeError: no kind has an option of this name.
    """
    fields = find_option_fields()
    if unknown := chosen.keys() - fields.keys():
        raise TypeError(f'no kind of task has the option {", ".join(sorted(unknown))}')
    parsed = {name: parse_option(fields[name], value) for name, value in chosen.items()}
    options = {}
    for kind in KINDS:
        own = {field.name for field in dataclasses.fields(kind.options)}
        options[kind.name] = kind.options(**{name: parsed[name] for name in own & parsed.keys()})
    return options


def fetch_data_dir(data_dir: str | None, patterns: Iterable[str]) -> str | None:
    """Returns the local path of a data directory.

    If it is in a bucket (gs://...), the folders of the kinds of tasks that the patterns name are
    copied into the cache.

    Args:
      data_dir: a path or URL, or None, which is returned.
      patterns: names of tasks, globs or names of suites.

    Raises:
      UserError: the bucket cannot be read, or the data do not fit on the disk.
    """
    if not data_dir:
        return None
    if not is_remote(data_dir):
        return str(expand_home(data_dir, '--data_dir'))
    names = [pattern.strip() for pattern in patterns]
    names += [task for name in names if name in SUITES for task in SUITES[name].tasks]
    folders = {
        kind.folder.split('/')[0]
        for kind in KINDS
        if any(fnmatchcase(kind.name, _get_kind(name)) for name in names)
    }
    found = RemoteFiles.find(data_dir, '--data_dir')
    return str(found.select(lambda name: name.split('/')[0] in folders).copy())


def find_tasks(
    data_dir: str | None, context: Context | None = None, **chosen: Any
) -> dict[str, Task]:
    """Returns all available tasks, by name.

    Args:
      data_dir: folder with retrieval/, codesearch/, senteval/ etc., or some of them; None finds
        only tasks that need no data.
      context: settings of the model and output directory; optional.
      chosen: values of task options by name, see `find_option_fields`.

    Raises:
      UserError: the folder does not exist, or its files or an option cannot be used.
    """
    folder = epath.Path(data_dir) if data_dir else None
    if folder and not folder.is_dir():
        raise UserError(
            f'--data_dir {data_dir}: no such directory; it should contain {_list_folders()}'
        )
    options = make_options(**chosen)
    context = context or Context()
    tasks: dict[str, Task] = {}
    for kind in KINDS:
        found = kind.find(folder, options[kind.name], context)
        for name, task in found.items():
            _check_task(task, name, kind)
        tasks |= found
    return tasks


def _check_task(task: Task, name: str, kind: TaskKind) -> None:
    """Raises TypeError if a task has no fingerprint, or its name does not fit its kind."""
    check_is_task(task, name)
    if task.name != name or not name.startswith(f'{kind.name}/'):
        raise TypeError(
            f'{name}: the task has the name {task.name}, and its kind has the names {kind.name}/*'
        )


def select_score_options(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the chosen options that the model's own scores depend on."""
    fields = find_option_fields()
    return {name: value for name, value in chosen.items() if get_flag(fields[name]).in_model_scores}


def select_tasks(
    tasks: dict[str, Task],
    patterns: Iterable[str],
    data_dir: str | None,
    allow_missing: bool = False,
) -> list[Task]:
    """Returns the tasks that match `patterns`, without duplicates, in the order of the patterns.

    Args:
      tasks: available tasks by name.
      patterns: task names, globs such as 'retrieval/*', or names of suites.
      data_dir: data directory, for the message.
      allow_missing: whether to run a suite without the tasks whose data are missing.

    Raises:
      UserError: a pattern matches no task. The message lists similar tasks and the expected layout
        of the data.
    """
    chosen: dict[str, Task] = {}
    for pattern in expand_suites(patterns, tasks, data_dir, allow_missing):
        found = {name: task for name, task in tasks.items() if fnmatchcase(name, pattern)}
        if not found:
            similar = _list_similar_tasks(pattern, tasks)
            raise UserError(
                f'--tasks {pattern}: no such task; available: {similar}; '
                f'{_describe_layout(pattern, data_dir)}; suites: {", ".join(SUITES)}'
            )
        chosen |= found
    if not chosen:
        raise UserError(f'--tasks is empty; available: {_list_similar_tasks("", tasks)}')
    return list(chosen.values())


def _get_kind(name: str) -> str:
    return name.split('/')[0]


def _list_similar_tasks(pattern: str, tasks: Iterable[str]) -> str:
    """Returns the available tasks of the pattern's kind; if there are none, the available kinds."""
    similar = [name for name in tasks if _get_kind(name) == _get_kind(pattern)]
    return ', '.join(similar or dict.fromkeys(f'{_get_kind(name)}/*' for name in tasks))


def _describe_layout(pattern: str, data_dir: str | None) -> str:
    """Returns where the data of the pattern's kind are expected."""
    layouts = {kind.name: kind.layout for kind in KINDS}
    expected = layouts.get(_get_kind(pattern)) or _list_folders()
    if data_dir:
        return f'expected in --data_dir {data_dir}: {expected}'
    return f'for other tasks give --data_dir, a folder with {expected}'


def _list_folders() -> str:
    folders = dict.fromkeys(kind.folder for kind in KINDS)
    return f'{", ".join(folders)}, or some of them'
