"""Continuous evaluation: every checkpoint of a run that is being trained is scored once, by as many
programs as one likes.

A score counts when its row is in results.jsonl (history.py). All else is made of the rows, after
each of them and when a program begins, so that one that is killed anywhere leaves nothing that the
next one does not mend: TensorBoard's points, best.json, best/, the report.
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

from cpt_jax.evals.run import claim_path, store, write_report
from cpt_jax.evals.store.embedding_cache import KeptVectors, digest_json
from cpt_jax.evals.store.history import HISTORY, Name, Row, add_row, best_of, name_of, read_rows
from cpt_jax.evals.store.results import RESULTS, ResultsFile
from cpt_jax.evals.task import Result, Task
from cpt_jax.runs import checkpoint
from cpt_jax.runs.best_checkpoint import keep_best, write_best
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.event_files import Point, write_points
from cpt_jax.storage.locks import CLAIMS, claimed, locked

POLL_SECONDS = 5
# Of waiting, before a line says so; the next ones come after twice as long each.
FIRST_LINE_SECONDS = 60
_HELD = 'scoring'  # how the claims begin of programs that hold a checkpoint
# Settings that are not the same for all checkpoints of a run.
_OF_CHECKPOINT = 'step', 'saved', 'code'

Settings = Mapping[str, object]


@dataclass
class Follower:
    """Scores the checkpoints of a run.

    Attributes:
      run: its directory.
      tasks: the tasks for a model with some settings, those of `fingerprints` among them.
      fingerprints: task -> fingerprint of what its scores depend on besides the model.
      settings_of: step -> the settings of the embedder of that checkpoint, which need not be
        loaded.
      load: step -> the embedding function of that checkpoint. The one before it is not used any
        more.
      keep: keep the best checkpoints from being deleted.
      asked: task -> the fingerprint of its rows, as this program measures; filled as it goes
        through checkpoints.
    """

    run: Path
    tasks: Callable[[Settings], Sequence[Task]]
    fingerprints: Mapping[str, str]
    settings_of: Callable[[int], Settings]
    load: Callable[[int], KeptVectors]
    keep: bool = True
    asked: dict[str, str] = field(default_factory=dict)
    _known: dict[tuple, Settings] = field(default_factory=dict)
    _failed: set[int] = field(default_factory=set)  # checkpoints that could not be read once
    _given_up: set[int] = field(default_factory=set)
    _told: set[int] = field(default_factory=set)

    @property
    def steps(self) -> list[int]:
        return checkpoint.steps_in(RunDir(self.run).checkpoints)

    @property
    def rows(self) -> list[Row]:
        return read_rows(self.run / HISTORY)

    def bring_up_to_date(self) -> None:
        """Makes all that is made of the rows, but the report."""
        with self._locked():
            self._derive()

    def go_through(self) -> bool:
        """Scores what nobody has scored, oldest first: those are deleted first. True: look again;
        others are at some, or some are new.
        """
        steps, left = self.steps, False
        for step in self._failed - set(steps):
            self._tell_gone(step)
        for step in steps:
            if step not in self._given_up:
                try:
                    left |= self._score_step(step)
                except _Unreadable as error:
                    left |= self._again(step, error)
        return left or self.steps != steps  # the last one may have come meanwhile

    def write_report(self) -> None:
        if (self.run / RESULTS).exists():
            write_report(epath.Path(self.run), epath.Path(RunDir(self.run).metrics))

    def _score_step(self, step: int) -> bool:
        """Scores the tasks of a checkpoint that nobody has. True: others are at some."""
        settings = self._settings(step)
        alike = {key: value for key, value in settings.items() if key not in _OF_CHECKPOINT}
        names = [
            (step, str(settings['saved']), task, digest_json([alike, fingerprint]))
            for task, fingerprint in self.fingerprints.items()
        ]
        self.asked |= {task: fingerprint for *_, task, fingerprint in names}
        there, kept, left = set(map(name_of, self.rows)), None, False
        if there.issuperset(names):
            return False
        # Not before, as this looks through all of the data.
        tasks = {task.name: task for task in self.tasks(settings)}
        with self._held(step):
            for name in names:
                task = tasks[name[2]]
                with claimed(
                    claim_path(epath.Path(self.run), f'{self.run.name}@{step}', task.name)
                ) as mine:
                    # It may have come while we were at other tasks.
                    if mine and name not in map(name_of, self.rows):
                        kept = kept or self._load(step)
                        self._score(task, name, settings, kept)
                left |= not mine
        if kept:
            self.write_report()
        return left

    @contextmanager
    def _held(self, step: int) -> Iterator[None]:
        """Keeps a checkpoint from being deleted while it is scored."""
        with ExitStack() as stack:
            with self._locked():
                stack.enter_context(
                    claimed(
                        self.run / CLAIMS / f'{_HELD}-{step}-{socket.gethostname()}-{os.getpid()}'
                    )
                )
                self._derive()
            yield
        self.bring_up_to_date()

    def _held_steps(self) -> set[int]:
        """The checkpoints that programs are scoring now; what a killed one left of its claim
        goes.
        """
        held = set()
        for path in (self.run / CLAIMS).glob(f'{_HELD}-*'):
            with claimed(path) as free:
                held |= set() if free else {int(path.name.split('-')[1])}
        return held

    def _locked(self) -> AbstractContextManager[None]:
        return locked(self.run / CLAIMS / 'results')

    def _settings(self, step: int) -> Settings:
        """Read once of each checkpoint; one of the same step may take its place."""
        try:
            folder = (RunDir(self.run).checkpoints / str(step)).stat()
            which = step, folder.st_ino, folder.st_mtime_ns
            if which not in self._known:
                with _quietly():
                    self._known[which] = json.loads(json.dumps(self.settings_of(step)))
            return self._known[which]
        except (UserError, FileNotFoundError) as error:
            raise _Unreadable(error) from error

    def _load(self, step: int) -> KeptVectors:
        try:
            with _quietly():
                return self.load(step)
        except UserError as error:
            raise _Unreadable(error) from error

    def _again(self, step: int, error: Exception) -> bool:
        """What becomes of a checkpoint that cannot be read: it may be about to be deleted. True:
        try again.
        """
        if step not in self.steps:
            self._tell_gone(step)
            return False
        if step not in self._failed:
            self._failed.add(step)
            return True
        self._given_up.add(step)
        self._failed.discard(step)
        tqdm.write(f'{error}; not scored')
        return False

    def _tell_gone(self, step: int) -> None:
        self._failed.discard(step)
        tqdm.write(
            f'checkpoint {step} was deleted before it was scored: checkpoint.keep_latest and '
            f'keep_every say which stay'
        )

    def _score(self, task: Task, name: Name, settings: Settings, kept: KeptVectors) -> None:
        step, start = name[0], time.perf_counter()
        tqdm.write(f'step {step:,}: {task.name}')
        with kept.during(task.name):
            result = task.run(kept)
        path = epath.Path(self.run) / RESULTS
        results = ResultsFile(path, f'{self.run.name}@{step}', dict(settings))
        store(results, task.name, result, self.fingerprints[task.name], newest=True)
        with self._locked():
            add_row(self.run / HISTORY, _row(name, result, time.perf_counter() - start))
            self._derive()

    def _derive(self) -> None:
        rows = self.rows
        best = best_of(rows)
        if rows:
            write_points(RunDir(self.run).evaluation_events, [_point(row) for row in rows])
            write_best(self.run, best)
        if self.keep:
            lost = set(keep_best(self.run, best, self._held_steps()))
        else:
            lost = {int(entry['step']) for entry in best.values()} - set(self.steps)
        for step in sorted(lost - self._told):
            tasks = ', '.join(task for task, entry in best.items() if entry['step'] == step)
            tqdm.write(
                f'the best checkpoint by {tasks}, step {step}, is not kept: it was deleted, or '
                f'the disk is full'
            )
            self._told.add(step)


def follow(
    follower: Follower,
    timeout: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """Scores checkpoints as they come; returns why it ended.

    Args:
      follower: of the run.
      timeout: seconds without a new checkpoint or a score, by whomever, after which it ends; 0:
        only when training ends.
      sleep, clock: as of the module time.

    Raises:
      UserError: a task cannot be run, on whatever checkpoint.
    """
    follower.bring_up_to_date()
    follower.write_report()
    before, since, next_line = None, clock(), FIRST_LINE_SECONDS
    while True:
        left = follower.go_through()
        last, rows = _last_step(follower.run), follower.rows
        # A run may go back to an earlier step.
        latest = max(follower.steps or [row['step'] for row in rows], default=0)
        if not left and last and latest >= last:
            return f'training ended at step {latest:,}'
        if before != (latest, len(rows)):
            before, since, next_line = (latest, len(rows)), clock(), FIRST_LINE_SECONDS
        waited = clock() - since
        if timeout and waited >= timeout:
            return (
                f'no new checkpoint for {waited / 60:.0f} min, at step {latest:,} of '
                f'{last or "?"}: not followed any longer'
            )
        if waited >= next_line:
            next_line *= 2
            what = (
                'others are scoring, or a checkpoint cannot be read'
                if left
                else f'a checkpoint after step {latest:,} of {last or "?"}'
            )
            tqdm.write(f'waiting for {waited / 60:.0f} min: {what}; {_sign_of_life(follower.run)}')
        sleep(POLL_SECONDS)


@contextmanager
def _quietly() -> Iterator[None]:
    """Orbax warns at length of a checkpoint that is being deleted; a line of ours says so."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


class _Unreadable(Exception):
    """A checkpoint cannot be read."""


def _row(name: Name, result: Result, seconds: float) -> Row:
    step, saved, task, fingerprint = name
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


def _point(row: Row) -> Point:
    scores = {f'{row["task"]}/{metric}': score for metric, score in row['metrics'].items()}
    return Point(row['step'], datetime.fromisoformat(row['time']).timestamp(), scores)


def _last_step(run: Path) -> int | None:
    """train.steps of the run as it goes on now; None before it has begun."""
    path = RunDir(run).config
    try:
        return json.loads(path.read_text('utf-8'))['train']['steps']
    except FileNotFoundError:
        return None
    except (ValueError, KeyError):
        raise UserError(f'{path}: not of a run, which --follow watches') from None


def _sign_of_life(run: Path) -> str:
    """When the trainer last wrote something."""
    metrics = RunDir(run).metrics
    if not metrics.exists():
        return 'the trainer has written nothing yet'
    return (
        f'the trainer wrote its last row {max(time.time() - metrics.stat().st_mtime, 0) / 60:.0f} '
        f'min ago'
    )
