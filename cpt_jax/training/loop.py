"""The training loop, top to bottom."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from cpt_jax.data.batch import place
from cpt_jax.loss.infonce import Metrics
from cpt_jax.runs import checkpoint
from cpt_jax.runs.config import build, write_config
from cpt_jax.runtime.errors import EXIT_PREEMPTED, UserError
from cpt_jax.runtime.preemption import Preempted, Preemption
from cpt_jax.storage.atomic_write import write_atomically
from cpt_jax.training.objective import Scorer
from cpt_jax.training.recording import Clock, Recorder
from cpt_jax.training.setup import Run, set_up_together
from cpt_jax.training.start import starting_state
from cpt_jax.training.startup import startup_table
from cpt_jax.training.step import StepPrograms, TrainState


def train(config: Mapping[str, Any], workdir: Path) -> int:
    """Trains a run to its last step, from its latest checkpoint if it has one.

    Args:
      config: the sections of configs/base.py, as plain values.
      workdir: the run's directory.

    Returns:
      The exit status: 0, or 42 if SIGTERM ended it early.

    Raises:
      UserError: the config or the data cannot be used; the directory holds another run; the loss is
        no number any more.
    """
    preemption = Preemption()
    run = set_up_together(config, workdir)
    if preemption.noticed():
        return EXIT_PREEMPTED
    workdir.mkdir(parents=True, exist_ok=True)
    with jax.set_mesh(run.mesh):
        saved = build(
            checkpoint.Checkpoints,
            'checkpoint',
            config['checkpoint'],
            directory=run.directory.checkpoints,
            tokenizer_file=run.tokenizer.file,
            about=run.provenance.to_json(),
        )
        first, state = starting_state(run, saved)
        if jax.process_index() == 0:
            write_config(workdir, run.provenance.config)
            run.tokenizer.save(run.directory.tokenizer)
            write_atomically(run.directory.data, json.dumps(_describe_data(run), indent=2) + '\n')
            print(startup_table(run, state, first, workdir), flush=True)
        try:
            status = _Loop(run, saved, preemption, first).go(state)
        except BaseException:
            # With several processes the others are told first (runtime/multihost.py): a save under
            # way would wait for them.
            if jax.process_count() == 1:
                saved.close()
            raise
        saved.close()
        if status == 0 and jax.process_index() == 0:
            print(
                f'done: step {max(first, run.train.steps):,} is in {workdir}; next: python '
                f'{run.objective.next_command}={workdir}'
            )
        return status


class _PendingMetrics(NamedTuple):
    """Metrics of the last step that was started, not yet read.

    Attributes:
      columns: tokens of its batch, padding included.
    """

    step: int
    columns: int
    on_device: Metrics


class _Loop:
    """The steps of one part of a run, and what happens between them."""

    def __init__(
        self,
        run: Run,
        saved: checkpoint.Checkpoints,
        preemption: Preemption,
        first: int,
    ):
        self.run = run
        self.saved = saved
        self.preemption = preemption
        self.first = first
        self.records = Recorder(run.directory, first, run.train.steps, jax.process_index() == 0)
        self.clock = Clock(
            self.records.last.get('seconds', 0.0), self.records.last.get('paused_seconds', 0.0)
        )
        self.pending: _PendingMetrics | None = None
        self.programs = StepPrograms(run)
        self.since = first, self.clock.trained  # of the last row
        self.unrecorded = {'dropped_pairs': 0.0, 'tokens': 0.0}  # sums over the steps since
        self.scorer: Scorer | None = None

    def go(self, state: TrainState) -> int:
        """Runs the steps that are left; returns the exit status."""
        if self.first >= self.run.train.steps:
            self.records.say(
                f'all {self.first:,} steps are done: set --config.train.steps=N to go on'
            )
        try:
            return self._steps(state)
        finally:
            self.records.close()

    def _steps(self, state: TrainState) -> int:
        upcoming = self.run.batches_after(self.first)
        for step in range(self.first + 1, self.run.train.steps + 1):
            batch = place(next(upcoming), self.run.mesh, self.run.layout)
            with self.clock.pause():
                program = self.programs(state, batch)
            # Compiling takes minutes for a large model. Before the first step nothing is new since
            # the last save.
            if step == self.first + 1 and self.preemption.noticed():
                return EXIT_PREEMPTED
            # Nothing between host and device but what is meant.
            with jax.transfer_guard('disallow'):
                state, metrics = program(state, batch)
            # XLA takes a step's memory when it is started: two at once would take it twice.
            if jax.default_backend() == 'cpu':
                jax.block_until_ready(metrics)
            if self.pending:  # the step before: the device is busy with this one meanwhile
                self._record(*self._read_pending(), {})
            self.pending = _PendingMetrics(step, batch.tokens_CxRxS.size, metrics)
            self.records.advance(1)
            if self._is_pause_due(step):
                should_stop = self._pause(step, state)
                if should_stop:
                    self.records.say(f'SIGTERM: saved step {step:,}; start again to go on')
                    return EXIT_PREEMPTED
        return 0

    def _is_pause_due(self, step: int) -> bool:
        return (
            self.preemption.reached(step)
            or self._is_last(step)
            or self._is_evaluation_due(step)
            or self.saved.due(step)
        )

    def _is_last(self, step: int) -> bool:
        return step == self.run.train.steps

    def _is_evaluation_due(self, step: int) -> bool:
        return bool(self.run.heldout) and (
            step % self.run.evaluation.every_steps == 0 or self._is_last(step)
        )

    def _pause(self, step: int, state: TrainState) -> bool:
        """Evaluates between two steps, unless there is no time left for it, and saves. Returns
        whether the run should stop.
        """
        metrics = self._read_pending()  # before a state that is no number could be saved
        scores = {}
        if self._is_evaluation_due(step) and not self.preemption.asked:
            scores = self._evaluate(state)
        stop = self.preemption.asked
        self._record(*metrics, scores, is_last=stop)
        if stop or self._is_last(step) or self.saved.due(step):
            with self.clock.pause():
                self.saved.save(step, state._replace(frozen=None))
        return stop

    def _evaluate(self, state: TrainState) -> dict[str, float]:
        """The scores; none where SIGTERM came in between."""
        with self.clock.pause():
            self.scorer = self.scorer or self.run.objective.scorer(self.run.held_out, state.whole)
            try:
                return self.scorer(state.whole, self.preemption.check)
            except Preempted:
                return {}

    def _read_pending(self) -> tuple[int, dict[str, float]]:
        """The metrics of the last step that was started; waits for it, and stops the run if they
        are no numbers.
        """
        assert self.pending is not None
        step, columns, on_device = self.pending
        self.pending = None
        metrics = {name: float(value) for name, value in jax.device_get(on_device).items()}
        metrics['padding_share'] = 1 - metrics['tokens'] / columns
        self.unrecorded['dropped_pairs'] += self.run.train.batch_pairs - metrics['pairs']
        self.unrecorded['tokens'] += metrics['tokens']
        if all(math.isfinite(metrics[name]) for name in ('loss', 'grad_norm', 'param_norm')):
            return step, metrics
        self.saved.wait()
        steps = checkpoint.steps_in(self.run.directory.checkpoints)
        kept = (
            f'the checkpoint of step {steps[-1]} stays as it is'
            if steps
            else 'there is no checkpoint yet'
        )
        raise UserError(
            f'at step {step} the loss is {metrics["loss"]:.4g}, the gradient norm '
            f'{metrics["grad_norm"]:.4g}, the parameter norm {metrics["param_norm"]:.4g} and the '
            f'learning rate {metrics["learning_rate"]:.2g}: stopped, and nothing saved since; '
            f'{kept}. Lower optimizer.peak_lr, or look at the data of that step'
        )

    def _record(
        self,
        step: int,
        metrics: dict[str, float],
        scores: dict[str, float],
        is_last: bool = False,
    ) -> None:
        """Writes a row if one is due: also at the last step of this part of the run, so that each
        step is in the sums of a row.
        """
        run = self.run
        due = step % run.train.log_every == 0 or self._is_last(step) or is_last
        if not due and not scores:
            return
        seconds = self.clock.trained
        passed = max(seconds - self.since[1], 1e-9)
        row = metrics | {
            'dropped_pairs': self.unrecorded['dropped_pairs'],
            'pairs_seen': step * run.train.batch_pairs,
            'pairs_per_second': (step - self.since[0]) * run.train.batch_pairs / passed,
            'tokens_per_second': self.unrecorded['tokens'] / passed,
            'seconds': seconds,
            'paused_seconds': self.clock.paused,
        }
        self.since = step, seconds
        self.unrecorded = dict.fromkeys(self.unrecorded, 0.0)
        self.records.write(step, row | scores)
        self.records.show(step, row, run.objective.figures(row))
        if scores:
            self.records.say(f'step {step:,}: {run.objective.line(row | scores)}, {seconds:.0f} s')


def _describe_data(run: Run) -> dict[str, Any]:
    return {
        name: {'pairs': len(source), 'fingerprint': source.fingerprint, 'summary': source.summary()}
        for name, source in run.sources.items()
    }
