"""What a run writes down: metrics.jsonl, TensorBoard events, a progress bar; and where its time
goes.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from cpt_jax.runs.run_dir import RunDir
from cpt_jax.storage.atomic_write import write_atomically
from cpt_jax.storage.event_files import summary_writer

# Where the output is no terminal.
SECONDS_BETWEEN_LINES = 30


class Clock:
    """Seconds of training, and seconds of pauses (evaluation, checkpoints), over all parts of a
    run.

    Attributes:
      paused: seconds inside `pause()`.
    """

    def __init__(self, trained: float = 0.0, paused: float = 0.0):
        self._start, self._before, self.paused = time.perf_counter(), trained + paused, paused

    @property
    def trained(self) -> float:
        """Seconds outside of pauses."""
        return self._before + time.perf_counter() - self._start - self.paused

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time spent inside is not training."""
        start = time.perf_counter()
        yield
        self.paused += time.perf_counter() - start


class Recorder:
    """Writes rows of one step each to metrics.jsonl and TensorBoard, and keeps a bar. Only the
    process that is `writing` does.
    """

    def __init__(self, directory: RunDir, first_step: int, steps: int, writing: bool):
        """Opens a run's records for going on after `first_step` steps: rows of later steps, from a
        part that was killed, go.
        """
        self._file, self._events = None, None
        self.last = keep_rows(directory.metrics, first_step) if writing else {}
        if writing:
            self._file = directory.metrics.open('a', encoding='utf-8')
            self._events = summary_writer()(
                str(directory.tensorboard), purge_step=first_step + 1, flush_secs=10
            )
        self._steps, self._next_line = steps, time.monotonic() + SECONDS_BETWEEN_LINES
        self._bar = tqdm(
            total=steps,
            initial=first_step,
            desc='training',
            unit='step',
            disable=None if writing else True,
        )

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """One line {"step": ..., ...}, and a point of each curve."""
        if self._file is None or self._events is None:
            return
        self._file.write(json.dumps({'step': step, **row}) + '\n')
        self._file.flush()
        for name, value in row.items():
            self._events.add_scalar(name, value, step)

    def advance(self, steps: int) -> None:
        """Moves the bar; it shows the time that is left."""
        self._bar.update(steps)

    def show(self, step: int, row: Mapping[str, float], figures: str) -> None:
        """The figures of the objective and of the rows, behind the bar; without a terminal, a line
        at times and one at the end.
        """
        figures += f', {row["tokens_per_second"]:,.0f} tokens/s, padding {row["padding_share"]:.1%}'
        figures += f', {row["dropped_pairs"]:.0f} pairs did not fit' if row['dropped_pairs'] else ''
        self._bar.set_postfix_str(figures)
        if self._bar.disable and (time.monotonic() > self._next_line or step == self._steps):
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            left = (self._steps - step) * row['seconds'] / max(step, 1)
            self.say(f'step {step:,} of {self._steps:,}: {figures}, {left / 60:.0f} min left')

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self._file is not None:
            self._bar.write(text)

    def close(self) -> None:
        self._bar.close()
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()


def keep_rows(path: Path, step: int) -> dict[str, float]:
    """Drops the rows of later steps, and a last line that was cut short, from a metrics.jsonl;
    returns the last row that stays.
    """
    if not path.exists():
        return {}
    kept = []
    for line in path.read_text(encoding='utf-8').splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # the run was killed in the middle of this line
            break
        if row['step'] > step:
            break
        kept.append(row)
    write_atomically(path, ''.join(json.dumps(row) + '\n' for row in kept))
    return kept[-1] if kept else {}
