"""Records of a run: metrics.jsonl, TensorBoard events, a log and a progress bar."""

import json
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from tqdm import tqdm

from cpt_jax.runs.run_dir import RunDir
from cpt_jax.storage.atomic_write import write_atomically
from cpt_jax.storage.event_files import EventWriter
from cpt_jax.storage.growing_file import GrowingFile
from cpt_jax.storage.json_rows import describe_damage, read_step_rows, select_numbers
from cpt_jax.training.wandb_rows import WandbRows

# Minimum time between two progress lines if the output is not a terminal.
SECONDS_BETWEEN_LINES = 30


class Recorder:
    """Writes one row per recorded step to metrics.jsonl and TensorBoard, and shows a progress bar.

    All methods do nothing if `is_writer` is False, as on all processes but one.

    Attributes:
      earlier: the rows recorded before the run was resumed; [] for a new run.
    """

    def __init__(
        self,
        directory: RunDir,
        first_step: int,
        steps: int,
        is_writer: bool,
        wandb: WandbRows | None = None,
    ):
        """Opens the records of a run that resumes after `first_step` steps.

        Rows of later steps, written before the run was killed, are dropped.

        Args:
          directory: the run's directory.
          first_step: number of steps that are done.
          steps: number of steps of the whole run.
          is_writer: whether this process writes.
          wandb: a further place for the rows.
        """
        self._wandb = wandb
        self._metrics: GrowingFile | None = None
        self._events: EventWriter | None = None
        self._log: GrowingFile | None = None
        # A run that begins again writes its row for step 0 again.
        self.earlier = drop_rows_after(directory.metrics, first_step or -1) if is_writer else []
        if is_writer:
            self._metrics = GrowingFile(directory.metrics)
            self._events = EventWriter(directory.tensorboard, first_step + 1)
            self._log = GrowingFile(directory.log)
        self._steps = steps
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
        self._bar = tqdm(
            total=steps,
            initial=first_step,
            desc='training',
            unit='step',
            disable=None if is_writer else True,  # None: disabled if the output is not a terminal
        )

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Writes a line {"step": ..., ...} to metrics.jsonl, and each value to TensorBoard."""
        if self._metrics is None or self._events is None:
            return
        self._metrics.append((json.dumps({'step': step, **row}) + '\n').encode())
        self._events.write_row(step, row)
        if self._wandb is not None:
            self._wandb.write(step, row)

    def advance(self, steps: int) -> None:
        """Advances the progress bar."""
        self._bar.update(steps)

    def flush(self) -> None:
        """Writes the rows that wait. A checkpoint must not be newer than the rows on the disk."""
        for file in (self._metrics, self._events, self._log):
            if file is not None:
                file.write()

    def show_progress(self, step: int, row: Mapping[str, float], text: str) -> None:
        """Shows metrics next to the progress bar; without a terminal, prints a line from time to
        time and one at the last step.

        Args:
          step: the step of the row.
          row: the recorded row.
          text: metrics of the objective, as text.
        """
        text += f', {row["tokens_per_second"]:,.0f} tokens/s, padding {row["padding_share"]:.1%}'
        if row['dropped_pairs']:
            text += f', {row["dropped_pairs"]:.0f} pairs did not fit'
        self._bar.set_postfix_str(text)
        if time.monotonic() > self._next_line or step == self._steps:
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            left = (self._steps - step) * row['seconds'] / max(step, 1)
            line = f'step {step:,} of {self._steps:,}: {text}, {left / 60:.0f} min left'
            if self._bar.disable:
                self.print_line(line)
            else:
                self.log(line)

    def print_line(self, text: str) -> None:
        """Prints a line above the progress bar, and logs it."""
        if self._log is not None:
            self._bar.write(text)
            self.log(text)

    def log(self, text: str) -> None:
        """Appends text to train.log, with the time."""
        if self._log is not None:
            now = datetime.now().astimezone().isoformat(sep=' ', timespec='seconds')
            self._log.append(f'{now} {text}\n'.encode())

    def close(self) -> None:
        self._bar.close()
        self.flush()
        if self._wandb is not None:
            self._wandb.close()


def drop_rows_after(path: Path, step: int) -> list[dict[str, float]]:
    """Drops the rows of later steps, and lines that are no rows, from a metrics.jsonl file.

    Lines that are no rows are reported, except an incomplete last line, which a killed run left.

    Returns:
      The numbers in the rows that are kept.
    """
    if not path.exists():
        return []
    rows, damaged = read_step_rows(path.read_bytes())
    if damaged:
        print(describe_damage(path, damaged), flush=True)
    kept = [row for row in rows if row['step'] <= step]
    write_atomically(path, ''.join(json.dumps(row) + '\n' for row in kept))
    return [select_numbers(row) for row in kept]
