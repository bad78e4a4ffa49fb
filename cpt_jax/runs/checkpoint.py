"""Checkpoints of a run: Orbax, asynchronous, whole or not there."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from cpt_jax.runs.best_checkpoint import find_best
from cpt_jax.runs.config import flatten
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError

_SAVE = ocp.training.save_decision_policies
_KEEP = ocp.training.preservation_policies
About = dict[str, Any]


class Checkpoints:
    """The checkpoints in a directory: `<step>/` each, with the state, the tokenizer's file, and
    `about` (config, code version, ...).

    Orbax writes into a directory with a temporary name and renames it at the end, so a checkpoint
    that a crash cut short is never taken for one.
    """

    def __init__(
        self,
        directory: Path,
        tokenizer_file: tuple[str, bytes],
        about: About,
        *,
        every_steps: int,
        keep_latest: int,
        keep_every: int,
    ):
        """Opens a directory for training.

        Args:
          directory: made if it is not there.
          tokenizer_file: name and content of the tokenizer's file, stored in every checkpoint.
          about: the metadata stored in every checkpoint.
          every_steps: save at each multiple.
          keep_latest: so many latest ones stay, for going on.
          keep_every: those at its multiples stay for good, for looking back; 0: none does.
        """
        for key, value, least in [
            ('every_steps', every_steps, 1),
            ('keep_latest', keep_latest, 1),
            ('keep_every', keep_every, 0),
        ]:
            if value < least:
                raise UserError(f'checkpoint.{key}={value}: must be {least} or more')
        self._tokenizer_file, self._about, self._directory = tokenizer_file, about, directory
        forever = [_KEEP.EveryNSteps(keep_every)] if keep_every else []
        self._open = lambda: ocp.training.Checkpointer(
            directory,
            save_decision_policy=_SAVE.FixedIntervalPolicy(every_steps),
            preservation_policy=_KEEP.AnyPreservationPolicy([_KEEP.LatestN(keep_latest), *forever]),
            cleanup_tmp_directories=True,
        )
        for name in _unfinished(directory):
            _say(f'checkpoint {name} was cut short while it was written: it is not used')
        self._checkpointer = self._open()

    def due(self, step: int) -> bool:
        """Is a save due after this many steps?"""
        return self._checkpointer.should_save(step)

    def save(self, step: int, state: Any) -> None:
        """Starts saving the state after `step` steps, due or not; returns when the state is copied.
        A step that is there is left alone.
        """
        if self._checkpointer.latest is not None and self._checkpointer.latest.step == step:
            return
        file_name, data = self._tokenizer_file
        content = {'state': by_name(state), 'tokenizer': {file_name: np.frombuffer(data, np.uint8)}}
        self._checkpointer.save_checkpointables_async(
            step, content, force=True, custom_metadata=self._about
        )

    def restore(self, abstract_state: Any) -> tuple[int, Any] | None:
        """The newest state that can be read and its step, on the shardings of `abstract_state`;
        None where there is no checkpoint.

        Raises:
          UserError: there are checkpoints and none can be read.
        """
        unreadable: list[int] = []
        for step in sorted(
            (checkpoint.step for checkpoint in self._checkpointer.checkpoints), reverse=True
        ):
            state: Any = None
            problem = 'another process cannot read it'
            try:
                state = self._checkpointer.load_checkpointables(
                    step, {'state': by_name(abstract_state)}
                )['state']
            except (MemoryError, PermissionError):
                raise
            except Exception as error:  # whatever a damaged file makes Orbax or TensorStore raise
                problem = _reason(error)
            # All go on from one step.
            if np.all(multihost_utils.process_allgather(np.asarray(state is not None))):
                self._set_aside(unreadable)
                return step, like(abstract_state, state)
            _say(f'checkpoint {step} cannot be read: the one before it is taken ({problem})')
            unreadable.append(step)
        if unreadable:
            raise UserError(
                f'{self._directory}: none of the checkpoints {unreadable} can be read; start in '
                'another --workdir'
            )
        return None

    def wait(self) -> None:
        """Waits for a save that is under way."""
        self._checkpointer.wait()

    def close(self) -> None:
        """Waits, and lets go of the directory."""
        self._checkpointer.close()

    def _set_aside(self, steps: list[int]) -> None:
        """Renames checkpoints that cannot be read, so that their steps can be saved anew and
        nothing is deleted.
        """
        if not steps:
            return
        self._checkpointer.close()
        if jax.process_index() == 0:
            for step in steps:
                names = (
                    self._directory / f'{step}.unreadable{suffix}'
                    for suffix in ('', *(f'-{i}' for i in range(2, 1000)))
                )
                (self._directory / str(step)).rename(
                    next(name for name in names if not name.exists())
                )
        multihost_utils.sync_global_devices('unreadable checkpoints set aside')
        self._checkpointer = self._open()


def steps_in(directory: Path) -> list[int]:
    """The steps of the finished checkpoints in a directory, oldest first."""
    return (
        sorted(int(path.name) for path in directory.glob('*') if path.name.isdigit())
        if directory.is_dir()
        else []
    )


def _nor_pretrained(directory: Path) -> str:
    """What a directory lacks of a pretrained model (origin/pretrained.py), which may have
    been meant; '' where that is not it.
    """
    if not directory.is_dir():
        return ', nor is there such a directory'
    if (directory / 'config.json').is_file():
        return ''
    return (
        ', nor does it hold a pretrained model: no config.json, and no .bin of llama2.c that is '
        'whole'
    )


def find(reference: str, flag: str) -> tuple[Path, int]:
    """The checkpoints' directory and the step of a model reference: a run's directory (its latest
    step), or `run@step`.

    `run@best:TASK` is the step with the best score of a task that launch/evaluate.py --follow
    measured, `run@best` that of the only one.

    Raises:
      UserError: there is no such run or checkpoint; the message begins with `flag`.
    """
    name, at, wanted = reference.rpartition('@')
    if not at or RunDir(Path(reference)).checkpoints.is_dir():  # a path may hold an @
        name, wanted = reference, ''
    if wanted.partition(':')[0] == 'best':
        return find_best(Path(name).absolute(), wanted.partition(':')[2], f'{flag} {reference}')
    directory = RunDir(Path(name).absolute()).checkpoints
    steps = steps_in(directory)
    if not steps:
        holds = f'{RunDir(Path(name)).checkpoints} holds none'
        raise UserError(
            f'{flag} {reference}: no run with a checkpoint ({holds}){_nor_pretrained(Path(name))}'
        )
    if wanted and wanted not in map(str, steps):
        raise UserError(
            f'{flag} {reference}: no such checkpoint; there are {", ".join(map(str, steps))}'
        )
    return directory, int(wanted) if wanted else steps[-1]


def read_about(directory: Path, step: int) -> About:
    """What was stored beside a checkpoint's state. Raises UserError where the checkpoint is
    damaged.
    """
    with _damage(directory, step):
        about = ocp.metadata(directory / str(step)).custom_metadata
        if not about:
            raise ValueError('it does not say what it is a checkpoint of')
    return about


def saved_at(directory: Path, step: int) -> str:
    """When a checkpoint was written (UTC, to the microsecond): two of one name and step are told
    apart by it.
    """
    with _damage(directory, step):
        nanoseconds = ocp.metadata(directory / str(step)).init_timestamp_nsecs
        return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat()


def latest_about(directory: Path) -> tuple[int, About] | None:
    """The newest step in a directory that says what it is, and what it says; None where there is
    none.
    """
    for step in reversed(steps_in(directory)):
        try:
            return step, read_about(directory, step)
        except UserError:  # `restore` will tell
            continue
    return None


def read_tokenizer_file(directory: Path, step: int) -> tuple[str, bytes]:
    """Name and content of the tokenizer's file inside a checkpoint."""
    with _damage(directory, step):
        files = ocp.load_checkpointables(directory / str(step), {'tokenizer': None})['tokenizer']
        ((name, data),) = files.items()
        return name, np.asarray(data).tobytes()


def load_params(directory: Path, step: int, abstract_params: Any) -> Any:
    """The parameters of a checkpoint alone, on the shardings of `abstract_params`: no optimizer
    state is read.

    Raises:
      KeyError: the checkpoint lacks one of them, or has it in another shape.
    """
    wanted = by_name(abstract_params)
    with _damage(directory, step):
        stored = ocp.metadata(directory / str(step)).metadata['params']
    there = {
        name: tuple(leaf.shape)
        for name, leaf in flatten({part: stored[part] for part in wanted if part in stored})
    }
    here = {name: leaf.shape for name, leaf in flatten(wanted)}
    # Orbax would say so in a hundred lines, leave a leaf abstract, or pass over one.
    for name in here.keys() | there.keys():
        if here.get(name) != there.get(name):
            raise KeyError(
                f'{name} is {there.get(name, "missing")} in the checkpoint and '
                f'{here.get(name, "missing")} here'
            )
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context, _damage(directory, step):
        loaded = ocp.load_checkpointables(directory / str(step), {'state': {'params': wanted}})
    return like(abstract_params, loaded['state']['params'])


@contextmanager
def _damage(directory: Path, step: int) -> Iterator[None]:
    """Turns whatever a damaged file makes Orbax or TensorStore raise into one line."""
    try:
        yield
    except (MemoryError, PermissionError):
        raise
    except Exception as error:
        others = ', '.join(f'@{other}' for other in steps_in(directory) if other != step) or 'none'
        raise UserError(
            f'{directory / str(step)} is damaged ({_reason(error)}); other checkpoints of the run: '
            f'{others}'
        ) from error


def _reason(error: BaseException) -> str:
    """The kind of an error and the beginning of its first line; of what caused it, where it says
    so.
    """
    while error.__cause__:
        error = error.__cause__
    return f'{type(error).__name__}: {(str(error).splitlines() or [""])[0][:120]}'


def by_name(tree: Any) -> dict[str, Any]:
    """Nested dicts with the leaves of a tree of modules, tuples and dicts: the plain names that
    stand on disk.
    """
    names: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        *folders, name = _names(path)
        place = names
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = leaf
    return names


def like(tree: Any, names: dict[str, Any]) -> Any:
    """The inverse of `by_name`: the structure of `tree` with the leaves of `names`."""

    def find(path: tuple, _: Any) -> Any:
        place = names
        for name in _names(path):
            place = place[name]
        return place

    return jax.tree_util.tree_map_with_path(find, tree)


def _names(path: tuple) -> list[str]:
    names = [
        str(getattr(key, 'name', getattr(key, 'key', getattr(key, 'idx', None)))) for key in path
    ]
    # An nnx.Param is a node with one leaf, "value"; a parameter may have that name itself.
    return (
        names[:-1]
        if isinstance(path[-1], jax.tree_util.GetAttrKey)
        and names[-1] == 'value'
        and len(names) > 1
        else names
    )


def _unfinished(directory: Path) -> list[str]:
    names = (
        [path.name for path in directory.glob('*.orbax-checkpoint-tmp*')]
        if directory.is_dir()
        else []
    )
    return sorted({match[1] for name in names if (match := re.match(r'(\d+)\.', name))})


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)
