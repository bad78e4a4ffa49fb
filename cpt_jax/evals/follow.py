"""Continuous evaluation: scores every checkpoint of a run once, while the run is being trained.

Any number of programs may evaluate the same run.

A score is final when its row is in results.jsonl (history.py). All other files are derived from the
rows: the TensorBoard points, best.json, best/ and the report. They are written after each row and
when a program starts, so the next program repairs whatever a killed program left unfinished.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from absl import logging
from etils import epath
from tqdm import tqdm

from cpt_jax.evals.report.curves import read_metrics
from cpt_jax.evals.run import make_claim_path, store_result, write_report
from cpt_jax.evals.store.embedding_cache import CachingEmbed, digest_json
from cpt_jax.evals.store.history import (
    HISTORY,
    Row,
    RowKey,
    add_row,
    find_best_checkpoints,
    get_row_key,
    read_rows,
)
from cpt_jax.evals.store.results import RESULTS, ResultsFile
from cpt_jax.evals.task import Result, Task
from cpt_jax.runs import checkpoint
from cpt_jax.runs.best_checkpoint import identify, keep_best, write_best
from cpt_jax.runs.run_dir import STOPPED_EARLY, RunDir
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.event_files import ScorePoint, write_points
from cpt_jax.storage.locks import LOCKS_FOLDER, try_lock, wait_for_lock

POLL_SECONDS = 5
# Waiting time before the first progress line. It doubles after each line.
FIRST_LINE_SECONDS = 60
_HELD = 'scoring'  # prefix of the lock files of programs that are scoring a checkpoint
# Settings that differ between the checkpoints of a run.
_CHECKPOINT_SETTINGS = 'step', 'saved', 'code'

Settings = Mapping[str, object]


@dataclass
class Follower:
    """Scores the checkpoints of a run.

    Attributes:
      run: directory of the run.
      tasks: function that returns the tasks for the settings of a model; they include all tasks in
        `fingerprints`.
      fingerprints: task -> fingerprint of everything that its scores depend on besides the model.
      read_step_settings: function from a step to the embedder settings of its checkpoint, without
        loading the checkpoint.
      load: function from a step to the embedding function of its checkpoint. A call may invalidate
        the embedding function that the previous call returned.
      keep: whether to protect the best checkpoints from deletion.
      row_fingerprints: task -> fingerprint of the rows that this program writes. Filled when
        checkpoints are scored.
    """

    run: Path
    tasks: Callable[[Settings], Sequence[Task]]
    fingerprints: Mapping[str, str]
    read_step_settings: Callable[[int], Settings]
    load: Callable[[int], CachingEmbed]
    keep: bool = True
    row_fingerprints: dict[str, str] = field(default_factory=dict)
    _known: dict[tuple, Settings] = field(default_factory=dict)
    _failed: set[int] = field(default_factory=set)  # checkpoints that failed to load once
    _given_up: set[int] = field(default_factory=set)  # checkpoints that failed to load twice
    _reported: set[int] = field(default_factory=set)  # best checkpoints reported as lost

    @property
    def steps(self) -> list[int]:
        """Steps of the run's checkpoints, in ascending order."""
        return checkpoint.list_steps(RunDir(self.run).checkpoints)

    @property
    def rows(self) -> list[Row]:
        """Rows of results.jsonl."""
        return read_rows(self.run / HISTORY)

    def update_derived_files(self) -> None:
        """Writes all files that are derived from the rows, except the report."""
        with self._lock_results():
            self._write_derived_files()

    def score_new_checkpoints(self) -> bool:
        """Scores all tasks that have no score yet, for the oldest checkpoints first.

        Training deletes the oldest checkpoints first.

        Returns:
          Whether something is left to do: other programs are scoring, a checkpoint must be tried
          again, or there are new checkpoints.
        """
        steps = self.steps
        left = False
        for step in self._failed - set(steps):
            self._report_deleted_checkpoint(step)
        for step in steps:
            if step not in self._given_up:
                try:
                    left |= self._score_step(step)
                except _UnreadableCheckpoint as error:
                    left |= self._should_retry(step, error)
        return left or self.steps != steps  # checkpoints may have been saved in the meantime

    def write_report(self) -> None:
        """Writes the report, if there are results."""
        if (self.run / RESULTS).exists():
            write_report(epath.Path(self.run), epath.Path(RunDir(self.run).metrics))

    def _score_step(self, step: int) -> bool:
        """Scores the tasks of a checkpoint that have no row. Returns whether other programs are
        scoring some of them.
        """
        settings = self._read_settings(step)
        common = {key: value for key, value in settings.items() if key not in _CHECKPOINT_SETTINGS}
        keys = [
            (step, str(settings['saved']), task, digest_json([common, fingerprint]))
            for task, fingerprint in self.fingerprints.items()
        ]
        self.row_fingerprints |= {task: fingerprint for *_, task, fingerprint in keys}
        if set(map(get_row_key, self.rows)).issuperset(keys):
            return False
        # Tasks are only made if a score is missing, because that searches all of the data.
        tasks = {task.name: task for task in self.tasks(settings)}
        embed = None
        left = False
        with self._protect_checkpoint(step):
            for key in keys:
                task = tasks[key[2]]
                with try_lock(
                    make_claim_path(epath.Path(self.run), f'{self.run.name}@{step}', task.name)
                ) as mine:
                    # Another program may have written the row in the meantime.
                    if mine and key not in map(get_row_key, self.rows):
                        embed = embed or self._load_embed(step)
                        self._score_task(task, key, settings, embed)
                left |= not mine
        if embed:
            self.write_report()
        return left

    @contextmanager
    def _protect_checkpoint(self, step: int) -> Iterator[None]:
        """Protects a checkpoint from deletion during the block."""
        with ExitStack() as stack:
            with self._lock_results():
                stack.enter_context(
                    try_lock(
                        self.run
                        / LOCKS_FOLDER
                        / f'{_HELD}-{step}-{socket.gethostname()}-{os.getpid()}'
                    )
                )
                self._write_derived_files()
            yield
        self.update_derived_files()

    def _find_held_steps(self) -> set[int]:
        """Returns the steps that are being scored; removes the lock files of killed programs."""
        held = set()
        folder = self.run / LOCKS_FOLDER
        for path in list(folder.iterdir()) if folder.is_dir() else []:
            if not path.name.startswith(f'{_HELD}-'):
                continue
            with try_lock(path) as free:
                if not free:
                    held.add(int(path.name.split('-')[1]))
        return held

    def _lock_results(self) -> AbstractContextManager[None]:
        return wait_for_lock(self.run / LOCKS_FOLDER / 'results')

    def _read_settings(self, step: int) -> Settings:
        """Returns the settings of a checkpoint, cached.

        A new checkpoint of the same step (another directory) is read again.
        """
        try:
            identity = step, identify(RunDir(self.run).checkpoints / str(step))
            if identity not in self._known:
                with _silence_warnings():
                    self._known[identity] = json.loads(json.dumps(self.read_step_settings(step)))
            return self._known[identity]
        except (UserError, FileNotFoundError) as error:
            raise _UnreadableCheckpoint(error) from error

    def _load_embed(self, step: int) -> CachingEmbed:
        try:
            with _silence_warnings():
                return self.load(step)
        except UserError as error:
            raise _UnreadableCheckpoint(error) from error

    def _should_retry(self, step: int, error: Exception) -> bool:
        """Returns whether to retry an unreadable checkpoint. It is read at most twice, since it may
        be in the middle of being deleted.
        """
        if step not in self.steps:
            self._report_deleted_checkpoint(step)
            return False
        if step not in self._failed:
            self._failed.add(step)
            return True
        self._given_up.add(step)
        self._failed.discard(step)
        tqdm.write(f'{error}; not scored')
        return False

    def _report_deleted_checkpoint(self, step: int) -> None:
        self._failed.discard(step)
        tqdm.write(
            f'checkpoint {step} was deleted before it was scored: set checkpoint.keep_latest or '
            f'checkpoint.keep_every to keep more checkpoints'
        )

    def _score_task(self, task: Task, key: RowKey, settings: Settings, embed: CachingEmbed) -> None:
        step = key[0]
        start = time.perf_counter()
        tqdm.write(f'step {step:,}: {task.name}')
        with embed.keep_during(task.name):
            result = task.run(embed)
        path = epath.Path(self.run) / RESULTS
        results = ResultsFile(path, f'{self.run.name}@{step}', dict(settings))
        store_result(results, task.name, result, task.fingerprint(), newest=True)
        with self._lock_results():
            add_row(self.run / HISTORY, _make_row(key, result, time.perf_counter() - start))
            self._write_derived_files()

    def _write_derived_files(self) -> None:
        """Writes the derived files. The caller holds the lock of the results."""
        rows = self.rows
        best = find_best_checkpoints(rows)
        if rows:
            write_points(RunDir(self.run).evaluation_events, [_make_point(row) for row in rows])
            write_best(self.run, best)
        if self.keep:
            lost = set(keep_best(self.run, best, self._find_held_steps()))
        else:
            lost = {int(entry['step']) for entry in best.values()} - set(self.steps)
        for step in sorted(lost - self._reported):
            tasks = ', '.join(task for task, entry in best.items() if entry['step'] == step)
            tqdm.write(
                f'the best checkpoint by {tasks}, step {step}, is not kept: it was deleted, or '
                f'the disk is full'
            )
            self._reported.add(step)


def follow(
    follower: Follower,
    timeout: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """Scores checkpoints as they are saved, until training ends or the timeout passes.

    Args:
      follower: the run, its tasks and the files to write.
      timeout: seconds without a new checkpoint or a new score, by any program, after which to stop;
        0: stop only when training has ended.
      sleep: replacement of time.sleep, for tests.
      clock: replacement of time.monotonic, for tests.

    Returns:
      The reason for stopping, as a text for the user.

    Raises:
      UserError: a task cannot be run.
    """
    follower.update_derived_files()
    follower.write_report()
    progress = None  # (latest step, number of rows)
    since = clock()  # time of the last progress
    next_line = FIRST_LINE_SECONDS
    while True:
        left = follower.score_new_checkpoints()
        last = _read_last_step(follower.run)
        rows = follower.rows
        # Not the last element: a run may resume from an earlier step.
        latest = max(follower.steps or [row['step'] for row in rows], default=0)
        if not left and last and latest >= last:
            return f'training ended at step {latest:,}'
        if progress != (latest, len(rows)):
            progress = (latest, len(rows))
            since = clock()
            next_line = FIRST_LINE_SECONDS
        waited = clock() - since
        if timeout and waited >= timeout:
            return (
                f'stopped following: no new checkpoint for {waited / 60:.0f} min, at step '
                f'{latest:,} of {last or "?"}'
            )
        if waited >= next_line:
            next_line *= 2
            reason = f'no checkpoint after step {latest:,} of {last or "?"} yet'
            if left:
                reason = 'other programs are scoring, or a checkpoint cannot be read'
            activity = _describe_trainer_activity(follower.run)
            tqdm.write(f'waiting for {waited / 60:.0f} min: {reason}; {activity}')
        sleep(POLL_SECONDS)


@contextmanager
def _silence_warnings() -> Iterator[None]:
    """Silences Orbax's long warnings about a checkpoint that is being deleted.

    This module reports such a checkpoint in one line.
    """
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


class _UnreadableCheckpoint(Exception):
    """A checkpoint cannot be read."""


def _make_row(key: RowKey, result: Result, seconds: float) -> Row:
    step, saved, task, fingerprint = key
    return {
        'step': step,
        'saved': saved,
        'task': task,
        'fingerprint': fingerprint,
        'main_score': result.main_score,
        'main_metric': result.metric,
        'metrics': result.metrics,
        'n': result.n,
        'seconds': round(seconds, 3),
        'time': datetime.now(UTC).isoformat(),
    }


def _make_point(row: Row) -> ScorePoint:
    scores = {f'{row["task"]}/{metric}': score for metric, score in row['metrics'].items()}
    return ScorePoint(row['step'], datetime.fromisoformat(row['time']).timestamp(), scores)


def _read_last_step(run: Path) -> int | None:
    """Returns the run's last step, if it is not interrupted: train.steps of its current config, or
    the step after which it stopped early; None before the run has started.
    """
    columns = read_metrics(epath.Path(RunDir(run).metrics))
    if STOPPED_EARLY in columns:
        last_step = columns['step'][0][-1]
        if columns[STOPPED_EARLY][0][-1] == last_step:
            return int(last_step)
    path = RunDir(run).config
    try:
        return int(json.loads(path.read_text('utf-8'))['train']['steps'])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f'{path}: not the config of a run; --follow needs the directory of a run'
        ) from None


def _describe_trainer_activity(run: Path) -> str:
    """Returns a text with the time since the trainer's last row of metrics."""
    metrics = RunDir(run).metrics
    if not metrics.exists():
        return 'the trainer has not written any metrics yet'
    seconds = max(time.time() - metrics.stat().st_mtime, 0)
    return f'the trainer wrote its last row {seconds / 60:.0f} min ago'
