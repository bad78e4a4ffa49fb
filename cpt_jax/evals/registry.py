"""The kinds of tasks, and which tasks a user's words select."""

import dataclasses
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from etils import epath

from cpt_jax.evals.options import Options, flag_of, parse_option
from cpt_jax.evals.suites import SUITES, expand_suites
from cpt_jax.evals.task import Context, Kind, Task, check_is_task
from cpt_jax.evals.tasks import bias, codesearch, knn, open_qa, probe, retrieval, sts, zeroshot
from cpt_jax.runtime.errors import UserError

# In the order in which --tasks '*' runs them.
KINDS: tuple[Kind, ...] = (
    codesearch.KIND,
    retrieval.KIND,
    open_qa.KIND,
    sts.KIND,
    bias.KIND,
    probe.KIND,
    knn.KIND,
    zeroshot.KIND,
)


def option_fields() -> dict[str, dataclasses.Field]:
    """Returns the options of all kinds by name, as their dataclasses declare them.

    Raises:
      TypeError: two kinds declare one name; an option that several have belongs in options.py.
    """
    found: dict[str, dataclasses.Field] = {}
    for kind in KINDS:
        for field in dataclasses.fields(kind.options):
            # A field that is inherited from a shared base class is the same object.
            if found.setdefault(field.name, field) is not field:
                raise TypeError(
                    f'the option {field.name} of {kind.name}/* is declared by another kind too: '
                    f'declare it once, in a base class of evals/options.py'
                )
    return found


def make_options(**chosen: Any) -> dict[str, Options]:
    """Returns the options of each kind by its name, with defaults for those that are not chosen.

    Raises:
      UserError: a value that its kind does not accept.
      TypeError: no kind has such an option.
    """
    fields = option_fields()
    if unknown := chosen.keys() - fields.keys():
        raise TypeError(f'no kind of task has the option {", ".join(sorted(unknown))}')
    parsed = {name: parse_option(fields[name], value) for name, value in chosen.items()}
    options = {}
    for kind in KINDS:
        own = {field.name for field in dataclasses.fields(kind.options)}
        options[kind.name] = kind.options(**{name: parsed[name] for name in own & parsed.keys()})
    return options


def find_tasks(
    data_dir: str | None, context: Context | None = None, **chosen: Any
) -> dict[str, Task]:
    """Returns every task that can be run, by name.

    Args:
      data_dir: the folder with retrieval/, codesearch/, senteval/ and so on, or some of them; None
        leaves what needs no data.
      context: what is known of the model and the output.
      chosen: options of tasks by name, see `option_fields`.
    """
    folder = epath.Path(data_dir) if data_dir else None
    if folder and not folder.is_dir():
        raise UserError(f'--data_dir {data_dir}: no such directory; expected there: {_folders()}')
    options, shared = make_options(**chosen), context or Context()
    tasks: dict[str, Task] = {}
    for kind in KINDS:
        found = kind.find(folder, options[kind.name], shared)
        for name, task in found.items():
            _check_task(task, name, kind)
        tasks |= found
    return tasks


def _check_task(task: Task, name: str, kind: Kind) -> None:
    """Raises TypeError for a task without a fingerprint, or with a name of another kind."""
    check_is_task(task, name)
    if task.name != name or not name.startswith(f'{kind.name}/'):
        raise TypeError(f'{name}: the task calls itself {task.name}, and its kind {kind.name}/*')


def scored_options(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of the chosen options that the model's own scores depend on."""
    fields = option_fields()
    return {name: value for name, value in chosen.items() if flag_of(fields[name]).in_model_scores}


def select(
    tasks: dict[str, Task],
    patterns: Iterable[str],
    data_dir: str | None,
    allow_missing: bool = False,
) -> list[Task]:
    """Returns the tasks whose names match `patterns`, each once, in the order asked for. A pattern
    may be a glob such as 'retrieval/*' or the name of a suite.

    Raises:
      UserError: a pattern selects nothing; the message lists what there is and where data are
        expected.
    """
    chosen: dict[str, Task] = {}
    for pattern in expand_suites(patterns, tasks, data_dir, allow_missing):
        found = {name: task for name, task in tasks.items() if fnmatchcase(name, pattern)}
        if not found:
            raise UserError(
                f'--tasks {pattern}: no such task; there are {_like(pattern, tasks)}; '
                f'{_where(pattern, data_dir)}; suites: {", ".join(SUITES)}'
            )
        chosen |= found
    if not chosen:
        raise UserError(f'--tasks is empty; there are {_like("", tasks)}')
    return list(chosen.values())


def _kind_of(name: str) -> str:
    return name.split('/')[0]


def _like(pattern: str, tasks: Iterable[str]) -> str:
    """The names of the tasks of the pattern's kind; where there are none, what kinds there are."""
    alike = [name for name in tasks if _kind_of(name) == _kind_of(pattern)]
    return ', '.join(alike or dict.fromkeys(f'{_kind_of(name)}/*' for name in tasks))


def _where(pattern: str, data_dir: str | None) -> str:
    layouts = {kind.name: kind.layout for kind in KINDS}
    expected = layouts.get(_kind_of(pattern)) or _folders()
    if data_dir:
        return f'expected in --data_dir {data_dir}: {expected}'
    return f'other data need --data_dir, a folder with {expected}'


def _folders() -> str:
    folders = dict.fromkeys(kind.folder for kind in KINDS)
    return f'{", ".join(folders)}, or some of them'
