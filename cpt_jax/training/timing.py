"""Where the time of a run goes: steps, waiting for data, compilation, evaluation and saving."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import jax

from cpt_jax.runtime.host_times import publish_host_seconds, read_host_seconds

PAUSES = ('compile', 'evaluate', 'save')
# Fields of a row that depend on the machine's speed: two equal runs differ in no others.
TIMING_FIELDS = frozenset(
    (
        'seconds',
        'paused_seconds',
        'goodput',
        'pairs_per_second',
        'tokens_per_second',
        'data_wait_seconds',
        'step_seconds_max',
        'slowest_process',
        'slowest_data_wait_seconds',
        'mfu',
        *(f'{kind}_seconds' for kind in PAUSES),
    )
)


class Clock:
    """Measures the seconds of training and of pauses (compilation, evaluation, checkpoints).

    The seconds before the run was resumed are included.

    Attributes:
      paused: seconds spent inside `pause()`.
    """

    def __init__(self, earlier: Sequence[Mapping[str, float]] = ()):
        """Starts the clock.

        Args:
          earlier: rows of metrics.jsonl before the run was resumed. The last one with times counts:
            that of an evaluation that was repeated after a stop has none.
        """
        row = next((row for row in reversed(earlier) if 'seconds' in row), {})
        self._start = time.perf_counter()
        self.paused = row.get('paused_seconds', 0.0)
        self._before = row.get('seconds', 0.0) + self.paused
        # Rows written before the kinds existed have only their sum.
        self._by_kind = {kind: row.get(f'{kind}_seconds', 0.0) for kind in PAUSES}

    @property
    def trained(self) -> float:
        """Seconds outside of pauses."""
        return self._before + time.perf_counter() - self._start - self.paused

    @contextmanager
    def pause(self, kind: str) -> Iterator[None]:
        """Counts the time spent in the context as a pause of a kind, one of PAUSES."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.paused += seconds
        self._by_kind[kind] += seconds

    def make_row(self) -> dict[str, float]:
        """Returns the fields of a row: the seconds, and the share of them that was training."""
        trained = self.trained
        return {
            'seconds': trained,
            'paused_seconds': self.paused,
            **{f'{kind}_seconds': seconds for kind, seconds in self._by_kind.items()},
            'goodput': trained / max(trained + self.paused, 1e-9),
        }


class StepTimes:
    """Measures the steps since the last recorded row.

    The device works while the host prepares the next batch, so the seconds of the host are no part
    of the step time unless the host is the slower of the two.
    """

    def __init__(self, clock: Clock):
        self._clock = clock
        self._step_start = clock.trained
        self._slowest = 0.0
        self._waited = 0.0

    @contextmanager
    def wait_for_data(self) -> Iterator[None]:
        """Counts the time spent in the context as waiting for the batch."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def end_step(self) -> None:
        """Counts the time since the last call as a step."""
        now = self._clock.trained
        self._slowest = max(self._slowest, now - self._step_start)
        self._step_start = now

    def take_row(self) -> dict[str, float]:
        """Returns the fields of a row, and starts the next row.

        With several processes, the row names the process that has waited the longest for its data,
        as far as the others have published their seconds.
        """
        row = {'data_wait_seconds': self._waited, 'step_seconds_max': self._slowest}
        if jax.process_count() > 1:
            publish_host_seconds(self._waited)
            if jax.process_index() == 0:
                process, seconds = max(read_host_seconds().items(), key=lambda item: item[1])
                row |= {'slowest_process': process, 'slowest_data_wait_seconds': seconds}
        self._slowest = 0.0
        self._waited = 0.0
        return row
