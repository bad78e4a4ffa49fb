"""The training loop."""

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from cpt_jax.data.batch import place_batch
from cpt_jax.loss.infonce import Metrics
from cpt_jax.runs import checkpoint
from cpt_jax.runs.best_checkpoint import write_best_heldout
from cpt_jax.runs.config import build, write_config
from cpt_jax.runs.owner import own_run
from cpt_jax.runs.run_dir import STOPPED_EARLY, RunDir
from cpt_jax.runtime.allocator import limit_heap
from cpt_jax.runtime.errors import EXIT_PREEMPTED, UserError
from cpt_jax.runtime.preemption import Preempted, Preemption
from cpt_jax.storage.atomic_write import write_atomically
from cpt_jax.storage.paths import make_absolute
from cpt_jax.training.heldout_scores import HeldoutScores
from cpt_jax.training.objective import Scorer
from cpt_jax.training.profiling import StepProfiler
from cpt_jax.training.recording import Recorder
from cpt_jax.training.save_timer import SaveTimer
from cpt_jax.training.setup import Run, set_up_on_all_processes
from cpt_jax.training.sizes import check_given_sizes
from cpt_jax.training.start import make_starting_state
from cpt_jax.training.startup import ChosenKeys, format_startup_table
from cpt_jax.training.step import StepPrograms, TrainState
from cpt_jax.training.timing import Clock, StepTimes
from cpt_jax.training.utilization import Utilization
from cpt_jax.training.wandb_rows import WandbRows


def train(config: Mapping[str, Any], workdir: Path, given: Collection[str] = ()) -> int:
    """Trains a run up to its last step, resuming from its latest checkpoint if there is one.

    Args:
      config: the sections of configs/base.py, as plain values.
      workdir: the run's directory.
      given: keys of the config that flags have set, for the startup table.

    Returns:
      The exit status: 0, or 42 if SIGTERM stopped the run early.

    Raises:
      UserError: the config or the data is invalid, the directory holds another run, or the loss,
        the gradient norm or the parameter norm is no longer finite.
    """
    preemption = Preemption()
    try:
        return _train(config, workdir, given, preemption)
    finally:
        preemption.restore_handler()


def _train(
    config: Mapping[str, Any], workdir: Path, given: Collection[str], preemption: Preemption
) -> int:
    check_given_sizes(config, given)
    with own_run(RunDir(make_absolute(workdir))):
        return _train_owned(config, workdir, given, preemption)


def _train_owned(
    config: Mapping[str, Any], workdir: Path, given: Collection[str], preemption: Preemption
) -> int:
    run = set_up_on_all_processes(config, workdir)
    if preemption.is_requested():
        return EXIT_PREEMPTED
    workdir.mkdir(parents=True, exist_ok=True)
    with jax.set_mesh(run.mesh):
        checkpoints = build(
            checkpoint.Checkpoints,
            'checkpoint',
            config['checkpoint'],
            directory=run.directory.checkpoints,
            tokenizer_file=run.tokenizer.file,
            about=run.provenance.to_json(),
        )
        first_step, state = make_starting_state(run, checkpoints)
        # All processes make the table, because it runs the schedule on the devices of all.
        table = format_startup_table(run, state, first_step, workdir, ChosenKeys(config, given))
        if jax.process_index() == 0:
            write_config(workdir, run.provenance.config)
            run.tokenizer.save(run.directory.tokenizer)
            write_atomically(run.directory.data, json.dumps(describe_data(run), indent=2) + '\n')
            print(table, flush=True)
        loop = _Loop(run, checkpoints, preemption, first_step)
        loop.recorder.log(table)
        try:
            status = loop.run_to_end(state)
        except BaseException:
            # With several processes, closing would wait for the other processes to finish a save
            # in progress, and they must first learn of this error (runtime/multihost.py).
            if jax.process_count() == 1:
                checkpoints.close()
            raise
        checkpoints.close()
        if status == 0:
            loop.recorder.print_line(loop.describe_end(workdir))
        loop.recorder.flush()
        return status


class _PendingMetrics(NamedTuple):
    """Metrics of the last step that was started, not yet copied to the host.

    Attributes:
      step: the step, counted from 1.
      columns: tokens of its batch, padding included.
      flops: model FLOPs of the step; see Utilization.
      on_device: the metrics, arrays on the devices.
    """

    step: int
    columns: int
    flops: float
    on_device: Metrics


class _Loop:
    """Runs the remaining steps of a run, with evaluations and saves in between.

    Attributes:
      first_step: number of steps already done before the loop.
      step: number of steps done.
      heldout: the held-out scores since step 0.
      pending: metrics of the last step started; None if they have been read.
      recorded_step: step of the last recorded row.
      recorded_seconds: training seconds at the last recorded row.
      unrecorded: sums over the steps since the last recorded row.
      is_save_due: whether a checkpoint is due after the current step.
    """

    def __init__(
        self,
        run: Run,
        checkpoints: checkpoint.Checkpoints,
        preemption: Preemption,
        first_step: int,
    ):
        self.run = run
        self.checkpoints = checkpoints
        self.preemption = preemption
        self.first_step = first_step
        self.step = first_step
        is_writer = jax.process_index() == 0
        wandb = None
        if run.train.wandb and is_writer:
            wandb = WandbRows(run.train.wandb, run.directory, run.provenance.config)
        self.recorder = Recorder(run.directory, first_step, run.train.steps, is_writer, wandb)
        self.clock = Clock(self.recorder.earlier)
        self.step_times = StepTimes(self.clock)
        self.utilization = Utilization(run)
        self.profiler = StepProfiler(run.train.profile_steps, run.directory.profile)
        self.heldout = HeldoutScores(
            run.objective.main_score,
            run.evaluation.patience,
            self.recorder.earlier,
            checkpoints.list_steps() if checkpoints.keeps_best else None,
        )
        self.pending: _PendingMetrics | None = None
        self.programs = StepPrograms(run)
        self.checkpoints.add_scores(self.heldout.signed)
        # The file may name a step that is gone, or none although there is one.
        if self.checkpoints.keeps_best:
            self._write_best()
        self.recorded_step = first_step
        self.recorded_seconds = self.clock.trained
        self.unrecorded = {'dropped_pairs': 0.0, 'tokens': 0.0, 'flops': 0.0}
        self.scorer: Scorer | None = None
        self.save_timer = SaveTimer(checkpoints.every_minutes, run.train.log_every)
        self.is_save_due = False

    def run_to_end(self, state: TrainState) -> int:
        """Runs the remaining steps; returns the exit status."""
        if self.first_step >= self.run.train.steps:
            self.recorder.print_line(
                f'all {self.first_step:,} steps are done: to train longer, set '
                f'--config.train.{"epochs" if self.run.train.epochs else "steps"}=N'
            )
        try:
            return self._run_steps(state)
        except UserError as error:
            self.recorder.log(f'error: {error}')
            raise
        finally:
            self.profiler.close()
            self.recorder.close()

    def _run_steps(self, state: TrainState) -> int:
        if not self.first_step and self.run.heldout_pairs and not self._evaluate_start(state):
            return EXIT_PREEMPTED
        if self._is_score_missing() and not self._evaluate_again(state):
            return EXIT_PREEMPTED
        if self._stops_early():
            return 0
        upcoming = self.run.iterate_batches_after(self.first_step)
        for step in range(self.first_step + 1, self.run.train.steps + 1):
            with self.step_times.wait_for_data():
                own_part = next(upcoming)
            batch = place_batch(own_part, self.run.mesh, self.run.layout)
            with self.clock.pause('compile'):
                program = self.programs(state, batch)
            # Compiling a large model takes minutes, so SIGTERM is likely to arrive meanwhile. There
            # is nothing to save before the first step.
            if step == self.first_step + 1 and self.preemption.is_requested():
                return EXIT_PREEMPTED
            self.profiler.start_before(step)
            # An accidental transfer between host and device would make the step wait.
            with jax.transfer_guard('disallow'):
                state, metrics = program(state, batch)
            # Record the previous step while the device is busy with this one.
            if self.pending:
                self._record(*self._read_pending(), {})
            # On CPU, XLA allocates a step's memory when the step is started: two steps in flight
            # would need twice the memory.
            if jax.default_backend() == 'cpu':
                jax.block_until_ready(metrics)
                limit_heap()
            flops = self.utilization.count_flops(own_part)
            self.pending = _PendingMetrics(step, batch.tokens_JxRxS.size, flops, metrics)
            self.profiler.stop_after(step, metrics)
            self.step_times.end_step()
            self.recorder.advance(1)
            self.step = step
            if self._is_pause_due(step):
                should_stop = self._evaluate_and_save(step, state)
                if should_stop:
                    self.recorder.print_line(
                        f'SIGTERM: saved step {step:,}; run the same command again to resume'
                    )
                    return EXIT_PREEMPTED
                if self._stops_early():
                    return 0
        return 0

    def _stops_early(self) -> bool:
        """Returns whether the held-out scores have stopped rising, before the last step."""
        if not self.heldout.should_stop or self._is_last(self.step):
            return False
        patience = self.heldout.patience
        self.recorder.print_line(
            f'step {self.step:,}: stopped early, because {patience} evaluations brought no better '
            f'score; to train on, set --config.evaluation.patience=0'
        )
        return True

    def describe_end(self, workdir: Path) -> str:
        """Returns the last line of a run that is done."""
        parts = [f'done: step {self.step:,} is in {workdir}']
        if scores := self.heldout.describe():
            parts.append(scores)
        model = workdir
        if self.checkpoints.keeps_best and self.heldout.best_step:
            model = Path(f'{workdir}@best')
        parts.append(f'next: python {self.run.objective.next_command}={model}')
        return '; '.join(parts)

    def _evaluate_start(self, state: TrainState) -> bool:
        """Records the held-out scores before the first step; returns False after SIGTERM."""
        scores = self._evaluate(state)
        if scores:
            start = {'pairs_seen': 0} | self.clock.make_row() | {'seconds': 0.0}
            self.heldout.add(0, scores)
            self.recorder.write(0, start | scores)
            self.recorder.print_line(f'step 0: {self.run.objective.format_heldout(scores)}')
        return bool(scores)

    def _is_score_missing(self) -> bool:
        """Returns whether SIGTERM stopped the evaluation of the step that is resumed from."""
        step = self.first_step
        return step > 0 and self._is_evaluation_due(step) and step not in self.heldout.steps

    def _evaluate_again(self, state: TrainState) -> bool:
        """Records the scores that the earlier start lacks; returns False after SIGTERM."""
        scores = self._evaluate(state)
        if scores:
            self.heldout.add(self.first_step, scores)
            self.recorder.write(self.first_step, scores)
            # Its checkpoint was saved without a score.
            self.checkpoints.add_scores(self.heldout.signed)
            if self.checkpoints.keeps_best:
                self._write_best()
            text = self.run.objective.format_heldout(scores)
            self.recorder.print_line(f'step {self.first_step:,}: {text}')
        return bool(scores)

    def _is_pause_due(self, step: int) -> bool:
        # Each of these calls is made on all processes at the same steps.
        should_stop = self.preemption.should_stop_after(step)
        is_time_up = self.save_timer.is_due(step)
        self.is_save_due = self._is_last(step) or is_time_up or self.checkpoints.is_due(step)
        return should_stop or self.is_save_due or self._is_evaluation_due(step)

    def _is_last(self, step: int) -> bool:
        return step == self.run.train.steps

    def _is_evaluation_due(self, step: int) -> bool:
        return bool(self.run.heldout_pairs) and (
            step % self.run.evaluation.every_steps == 0 or self._is_last(step)
        )

    def _evaluate_and_save(self, step: int, state: TrainState) -> bool:
        """Evaluates and saves between two steps, whichever is due; returns whether to stop the run.

        After SIGTERM, the evaluation is skipped and the state is always saved.
        """
        # Reading the metrics raises an error if they are not finite, before anything is saved.
        metrics = self._read_pending()
        scores = {}
        if self._is_evaluation_due(step) and not self.preemption.requested:
            self.recorder.flush()  # an evaluation may take minutes
            scores = self._evaluate(state)
        should_stop = self.preemption.requested
        score = None
        if scores:
            self.heldout.add(step, scores)
            score = self.heldout.signed[step]
        is_best = self.checkpoints.keeps_best and self.heldout.best_step == step
        stops_here = should_stop or self.heldout.should_stop
        if self.heldout.should_stop and not self._is_last(step):
            scores = scores | {STOPPED_EARLY: 1.0}
        is_saved = stops_here or is_best or self.is_save_due
        self._record(*metrics, scores, is_saved)
        self.recorder.flush()
        if is_saved:
            self.save_timer.restart()
            with self.clock.pause('save'):
                self.checkpoints.save(step, state._replace(frozen=None), score)
                if is_best:
                    self._write_best()
        return should_stop

    def _write_best(self) -> None:
        """Makes RUN@best the best checkpoint, once it is complete."""
        self.checkpoints.wait()
        step = self.heldout.best_step
        if jax.process_index() == 0 and step is not None:
            write_best_heldout(self.run.directory.path, step, self.heldout.get(step))

    def _evaluate(self, state: TrainState) -> dict[str, float]:
        """Returns the held-out scores; an empty dict if SIGTERM arrived during the evaluation."""
        with self.clock.pause('evaluate'):
            if self.scorer is None:
                self.scorer = self.run.objective.make_scorer(self.run.held_out, state.all_params)
            try:
                return self.scorer(state.all_params, self.preemption.check)
            except Preempted:
                return {}

    def _read_pending(self) -> tuple[int, dict[str, float]]:
        """Waits for the last step that was started; returns the step and its metrics.

        Raises:
          UserError: the loss, the gradient norm or the parameter norm is not finite.
        """
        assert self.pending is not None
        step, columns, flops, on_device = self.pending
        self.pending = None
        metrics = {name: float(value) for name, value in jax.device_get(on_device).items()}
        metrics['padding_share'] = 1 - metrics['tokens'] / columns
        self.unrecorded['dropped_pairs'] += self.run.train.batch_pairs - metrics['pairs']
        self.unrecorded['tokens'] += metrics['tokens']
        self.unrecorded['flops'] += flops
        if all(math.isfinite(metrics[name]) for name in ('loss', 'grad_norm', 'param_norm')):
            return step, metrics
        self.checkpoints.wait()
        steps = checkpoint.list_steps(self.run.directory.checkpoints)
        saved = 'there is no checkpoint yet'
        if steps:
            saved = f'the latest checkpoint is that of step {steps[-1]}'
        raise UserError(
            f'training stopped at step {step}, because a value is not finite: loss '
            f'{metrics["loss"]:.4g}, gradient norm {metrics["grad_norm"]:.4g}, parameter norm '
            f'{metrics["param_norm"]:.4g}, at learning rate {metrics["learning_rate"]:.2g}; '
            f'{saved}. Lower optimizer.peak_lr, or check the data of this step'
        )

    def _record(
        self,
        step: int,
        metrics: dict[str, float],
        scores: dict[str, float],
        is_saved: bool = False,
    ) -> None:
        """Writes a row if one is due.

        A row is also due at a step that is saved, so that the sums of the rows include every step
        also after a kill.
        """
        run = self.run
        is_due = step % run.train.log_every == 0 or self._is_last(step) or is_saved
        if not is_due and not scores:
            return
        seconds = self.clock.trained
        passed = max(seconds - self.recorded_seconds, 1e-9)
        row = metrics | {
            'dropped_pairs': self.unrecorded['dropped_pairs'],
            'pairs_seen': step * run.train.batch_pairs,
            'pairs_per_second': (step - self.recorded_step) * run.train.batch_pairs / passed,
            'tokens_per_second': self.unrecorded['tokens'] / passed,
            **count_epochs_so_far(run, step),
        }
        row |= self.clock.make_row() | self.step_times.take_row()
        row |= self.utilization.make_row(self.unrecorded['flops'], passed)
        self.recorded_step = step
        self.recorded_seconds = seconds
        self.unrecorded = dict.fromkeys(self.unrecorded, 0.0)
        self.recorder.write(step, row | scores)
        self.recorder.show_progress(step, row, run.objective.format_progress(row))
        if scores:
            self.recorder.print_line(
                f'step {step:,}: {run.objective.format_scores(row | scores)}, {seconds:.0f} s'
            )


def count_epochs_so_far(run: Run, step: int) -> dict[str, float]:
    """Returns how many times each source of a mixture was read; {} if there is only one."""
    if len(run.epochs) == 1:
        return {}
    return {
        f'epochs/{name}': epochs * step / run.train.steps for name, epochs in run.epochs.items()
    }


def describe_data(run: Run) -> dict[str, Any]:
    """Returns the content of the run's data.json."""
    return {
        name: {
            'pairs': len(source),
            'fingerprint': source.fingerprint,
            'summary': source.summary(),
            'epochs': run.epochs[name],
        }
        for name, source in run.sources.items()
    }
