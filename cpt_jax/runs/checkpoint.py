"""Checkpoints of a run: written by Orbax, asynchronously and atomically."""

import functools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from cpt_jax.runs.aborted_reads import silence_aborted_reads
from cpt_jax.runs.best_checkpoint import is_complete
from cpt_jax.runs.checksums import CHECKSUM, add_checksum, make_saving_context, remove_checksum
from cpt_jax.runs.config import flatten
from cpt_jax.runtime.errors import UserError

_SAVE = ocp.training.save_decision_policies
_KEEP = ocp.training.preservation_policies
_SCORE = 'score'  # name of the score among the metrics of a checkpoint
# The metadata of a checkpoint, as JSON: a Provenance.
Metadata = dict[str, Any]


class DamagedCheckpoint(UserError):
    """A checkpoint cannot be read, or a checksum does not match."""


class Checkpoints:
    """The checkpoints in a directory, each in its own folder `<step>/`.

    A checkpoint contains the state, the tokenizer's file and the metadata (config, code version,
    ...). The last file that Orbax writes is commit_success.txt; a folder without it is an
    incomplete checkpoint of a crashed run, which is never restored.

    Attributes:
      keeps_best: whether the checkpoint with the highest score is kept.
      every_minutes: see `__init__`.
    """

    def __init__(
        self,
        directory: Path,
        tokenizer_file: tuple[str, bytes],
        about: Metadata,
        *,
        every_steps: int,
        keep_latest: int,
        keep_every: int,
        keep_best: bool = False,
        every_minutes: float = 0.0,
    ):
        """Opens a directory for training.

        Args:
          directory: the directory; it is created if it does not exist.
          tokenizer_file: name and content of the tokenizer's file, stored in every checkpoint.
          about: metadata stored in every checkpoint.
          every_steps: a save is due at every multiple of this number of steps.
          keep_latest: number of latest checkpoints to keep, to resume from.
          keep_every: checkpoints at multiples of this step are kept forever; 0 keeps none.
          keep_best: whether to keep the checkpoint with the highest score.
          every_minutes: a save is also due after this time; 0: not. `is_due` does not look at it,
            because the processes of a run must agree on the time; see SaveTimer.

        Raises:
          UserError: one of the numbers is too small.
        """
        for key, value, minimum in [
            ('every_steps', every_steps, 1),
            ('keep_latest', keep_latest, 1),
            ('keep_every', keep_every, 0),
            ('every_minutes', every_minutes, 0),
        ]:
            if value < minimum:
                raise UserError(f'checkpoint.{key}={value}: must be {minimum} or more')
        self._directory = directory
        self._tokenizer_file = tokenizer_file
        self._metadata = about
        self.keeps_best = keep_best
        self.every_minutes = every_minutes
        self._scores: dict[int, float] = {}
        policies: list[Any] = [_KEEP.LatestN(keep_latest)]
        if keep_every:
            policies.append(_KEEP.EveryNSteps(keep_every))
        if keep_best:
            policies.append(_KeepBest(self._scores))
        self._open = lambda: ocp.training.Checkpointer(
            directory,
            context=make_saving_context(),
            save_decision_policy=_SAVE.FixedIntervalPolicy(every_steps),
            preservation_policy=_KEEP.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
        )
        for name in _find_unfinished(directory):
            _print_once(f'checkpoint {name} is incomplete: it is not used')
        self._checkpointer = self._open()

    def list_steps(self) -> list[int]:
        """Returns the steps of the checkpoints."""
        return [saved.step for saved in self._checkpointer.checkpoints]

    def add_scores(self, scores: Mapping[int, float]) -> None:
        """Adds scores by step, which `keep_best` compares with those of `save`.

        A checkpoint has none of its own if SIGTERM stopped its evaluation.
        """
        self._scores.update(scores)

    def is_due(self, step: int) -> bool:
        """Returns whether a save is due after this many steps."""
        return self._checkpointer.should_save(step)

    def save(self, step: int, state: Any, score: float | None = None) -> None:
        """Starts to save the state after `step` steps, even if no save is due.

        Returns when the state is copied, so that its buffers can be donated. Does not save if the
        latest checkpoint is of the same step.

        Args:
          step: number of steps.
          state: the state after them.
          score: score that `keep_best` compares, higher is better; None if it is not known.
        """
        if self._checkpointer.latest is not None and self._checkpointer.latest.step == step:
            return
        file_name, data = self._tokenizer_file
        content = {
            'state': to_nested_dict(state),
            'tokenizer': {file_name: np.frombuffer(data, np.uint8)},
        }
        self._checkpointer.save_checkpointables_async(
            step,
            content,
            force=True,
            metrics=None if score is None else {_SCORE: score},
            custom_metadata=add_checksum(self._metadata),
        )

    def restore(self, abstract_state: Any) -> tuple[int, Any] | None:
        """Restores the newest checkpoint that all processes can read, with its tokenizer and
        metadata.

        Checkpoints that cannot be read are renamed to `<step>.unreadable`.

        Args:
          abstract_state: tree of ShapeDtypeStructs with the shardings of the state.

        Returns:
          The step and the state; None if there is no checkpoint.

        Raises:
          UserError: there are checkpoints, but none can be read.
        """
        unreadable: list[int] = []
        for step in sorted(
            (checkpoint.step for checkpoint in self._checkpointer.checkpoints), reverse=True
        ):
            state: Any = None
            problem = 'another process cannot read it'
            try:
                read_metadata(self._directory, step)
                read_tokenizer_file(self._directory, step)
                state = self._checkpointer.load_checkpointables(
                    step, {'state': to_nested_dict(abstract_state)}
                )['state']
            except (MemoryError, PermissionError):
                raise
            except Exception as error:  # Orbax and TensorStore raise various types
                problem = _summarize_error(error)
            # All processes must resume from the same step.
            if np.all(multihost_utils.process_allgather(np.asarray(state is not None))):
                self._set_aside(unreadable)
                return step, from_nested_dict(abstract_state, state)
            _print_once(f'checkpoint {step} cannot be read: using the one before it ({problem})')
            unreadable.append(step)
        if unreadable:
            raise UserError(
                f'{self._directory}: none of the checkpoints {unreadable} can be read: start '
                f'again with another --workdir'
            )
        return None

    def wait(self) -> None:
        """Waits until the current save is finished."""
        self._checkpointer.wait()

    def close(self) -> None:
        """Waits until the current save is finished, and releases the directory."""
        self._checkpointer.close()

    def _set_aside(self, steps: list[int]) -> None:
        """Renames unreadable checkpoints, so that their steps can be saved again.

        Nothing is deleted, so that the user can still inspect or repair them.
        """
        if not steps:
            return
        self._checkpointer.close()
        if jax.process_index() == 0:
            for step in steps:
                suffixes = ['', *(f'-{i}' for i in range(2, 1000))]
                targets = [self._directory / f'{step}.unreadable{suffix}' for suffix in suffixes]
                free = next(target for target in targets if not target.exists())
                (self._directory / str(step)).rename(free)
        multihost_utils.sync_global_devices('unreadable checkpoints set aside')
        self._checkpointer = self._open()


class _KeepBest:
    """Orbax's policy that keeps the checkpoint with the highest score, the latest one of several.

    Attributes:
      scores: scores by step, of checkpoints that may have none of their own.
    """

    def __init__(self, scores: Mapping[int, float]):
        self.scores = scores

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns whether each checkpoint is kept."""
        del context
        found = {saved.step: saved.metrics[_SCORE] for saved in checkpoints if saved.metrics}
        steps = [saved.step for saved in checkpoints]
        found |= {step: self.scores[step] for step in steps if step in self.scores}
        best = max(found, key=lambda step: (found[step], step), default=None)
        return [step == best for step in steps]


def list_steps(directory: Path) -> list[int]:
    """Returns the steps of the complete checkpoints in a directory, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(
        int(path.name) for path in directory.iterdir() if path.name.isdigit() and is_complete(path)
    )


def read_metadata(directory: Path, step: int) -> Metadata:
    """Returns the metadata of a checkpoint. Raises DamagedCheckpoint if they are damaged."""
    with _report_damage(directory, step):
        stored = ocp.metadata(directory / str(step)).custom_metadata
        if not stored:
            raise ValueError('it has no metadata')
        if CHECKSUM not in stored:
            _report_missing_checksums(directory.parent)
        return remove_checksum(stored)


@functools.cache
def _report_missing_checksums(run: Path) -> None:
    """Prints a line, once per run."""
    _print_once(
        f'{run}: its checkpoints have no checksums (an earlier version wrote them): damaged values '
        f'would not be noticed'
    )


def read_save_time(directory: Path, step: int) -> str:
    """Returns the time when a checkpoint was written, as ISO 8601 in UTC, to the microsecond.

    It distinguishes two checkpoints of the same run name and step.
    """
    with _report_damage(directory, step):
        nanoseconds = ocp.metadata(directory / str(step)).init_timestamp_nsecs
        return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat()


def read_latest_metadata(directory: Path) -> tuple[int, Metadata] | None:
    """Returns the newest step with readable metadata and tokenizer, and the metadata; None if there
    is none.
    """
    for step in reversed(list_steps(directory)):
        try:
            read_tokenizer_file(directory, step)
            return step, read_metadata(directory, step)
        except DamagedCheckpoint:  # `restore` reports it
            continue
    return None


def read_tokenizer_file(directory: Path, step: int) -> tuple[str, bytes]:
    """Returns the name and the content of the tokenizer's file in a checkpoint."""
    with _report_damage(directory, step):
        files = ocp.load_checkpointables(directory / str(step), {'tokenizer': None})['tokenizer']
        ((name, data),) = files.items()
        return name, np.asarray(data).tobytes()


def load_params(directory: Path, step: int, abstract_params: Any) -> Any:
    """Loads parameters from a checkpoint, without reading the optimizer state.

    Args:
      directory: directory of the checkpoints.
      step: step of the checkpoint.
      abstract_params: tree of ShapeDtypeStructs with the shardings of the parameters to load; it
        may be a part of the parameters in the checkpoint.

    Raises:
      KeyError: the checkpoint lacks a parameter, or has it in another shape.
      DamagedCheckpoint: the parameters cannot be read.
    """
    wanted = to_nested_dict(abstract_params)
    with _report_damage(directory, step):
        stored = ocp.metadata(directory / str(step)).metadata['params']
    stored_parts = {part: stored[part] for part in wanted if part in stored}
    stored_shapes = {name: tuple(leaf.shape) for name, leaf in flatten(stored_parts)}
    wanted_shapes = {name: leaf.shape for name, leaf in flatten(wanted)}
    # The shapes are checked here, because for a mismatch Orbax prints a hundred lines, leaves a
    # leaf abstract or skips it.
    for name in wanted_shapes.keys() | stored_shapes.keys():
        if wanted_shapes.get(name) != stored_shapes.get(name):
            raise KeyError(
                f'{name} is {stored_shapes.get(name, "missing")} in the checkpoint and '
                f'{wanted_shapes.get(name, "missing")} here'
            )
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context, _report_damage(directory, step):
        loaded = ocp.load_checkpointables(directory / str(step), {'state': {'params': wanted}})
    return from_nested_dict(abstract_params, loaded['state']['params'])


def read_param_shapes(directory: Path, step: int) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each parameter of a checkpoint, by name, such as 'encoder.a.b'."""
    with _report_damage(directory, step):
        stored = ocp.metadata(directory / str(step)).metadata['params']
        return {name: tuple(leaf.shape) for name, leaf in flatten(stored)}


def load_some_params(directory: Path, step: int, names: Collection[str]) -> dict[str, np.ndarray]:
    """Returns some parameters of a checkpoint on the host, without reading the others.

    Args:
      directory: directory of the checkpoints.
      step: step of the checkpoint.
      names: names of the parameters, from `read_param_shapes`.
    """
    with _report_damage(directory, step):
        stored = dict(flatten(ocp.metadata(directory / str(step)).metadata['params']))
        wanted = {name: np.empty(stored[name].shape, stored[name].dtype) for name in names}
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with context:
            loaded = ocp.load_checkpointables(
                directory / str(step), {'state': {'params': unflatten(wanted)}}
            )
        return {name: np.asarray(array) for name, array in flatten(loaded['state']['params'])}


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dicts; inverts `flatten`."""
    nested: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split('.')
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return nested


@contextmanager
def _report_damage(directory: Path, step: int) -> Iterator[None]:
    """Turns any exception of Orbax or TensorStore in the block into a DamagedCheckpoint."""
    silence_aborted_reads()
    try:
        yield
    except (MemoryError, PermissionError):
        raise
    except Exception as error:
        others = (
            ', '.join(f'@{other}' for other in list_steps(directory) if other != step) or 'none'
        )
        raise DamagedCheckpoint(
            f'{directory / str(step)} is damaged ({_summarize_error(error)}); other checkpoints of '
            f'the run: {others}'
        ) from error


def _summarize_error(error: BaseException) -> str:
    """Returns the type and the start of the message of an error's root cause."""
    while error.__cause__:
        error = error.__cause__
    first_line = (str(error).splitlines() or [''])[0]
    return f'{type(error).__name__}: {first_line[:120]}'


def to_nested_dict(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree of modules, tuples and dicts as nested dicts.

    Checkpoints on disk have these names.
    """
    nested: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        *parents, name = _get_path_names(path)
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return nested


def from_nested_dict(tree: Any, nested: dict[str, Any]) -> Any:
    """Returns a tree with the structure of `tree` and the leaves of `nested`.

    This is the inverse of `to_nested_dict`.
    """

    def get_leaf(path: tuple, _: Any) -> Any:
        node = nested
        for name in _get_path_names(path):
            node = node[name]
        return node

    return jax.tree_util.tree_map_with_path(get_leaf, tree)


def _get_path_names(path: tuple) -> list[str]:
    """Returns the names on the path to a leaf."""
    names = [
        str(getattr(key, 'name', getattr(key, 'key', getattr(key, 'idx', None)))) for key in path
    ]
    # An nnx.Param is a node with one leaf, its attribute "value". That name is dropped, unless the
    # path has no other. Only one is dropped, because a parameter may itself be called "value".
    is_attribute = isinstance(path[-1], jax.tree_util.GetAttrKey)
    if is_attribute and names[-1] == 'value' and len(names) > 1:
        return names[:-1]
    return names


def _find_unfinished(directory: Path) -> list[str]:
    """Returns the steps of incomplete checkpoints, as strings.

    Earlier versions wrote a checkpoint under a temporary name.
    """
    if not directory.is_dir():
        return []
    names = [path.name for path in directory.iterdir() if not is_complete(path)]
    unfinished = re.compile(r'(\d+)(\.orbax-checkpoint-tmp.*)?')
    return sorted({match[1] for name in names if (match := unfinished.fullmatch(name))})


def _print_once(line: str) -> None:
    """Prints a line on process 0."""
    if jax.process_index() == 0:
        print(line, flush=True)
