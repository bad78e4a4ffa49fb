"""Progress of work that takes hours, with an estimate of the remaining time."""

import sys
import time
from datetime import timedelta
from types import TracebackType

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 60.0


class Progress:
    """Shows a progress bar on a terminal, or prints a line every minute where there is none.

    A log file would otherwise say nothing for hours.
    """

    def __init__(self, name: str, total: int, unit: str):
        """Starts the clock.

        Args:
          name: name of the work.
          total: number of items to do.
          unit: name of an item, in the singular.
        """
        self._name = name
        self._total = total
        self._unit = unit
        self._done = 0
        self._start = time.monotonic()
        self._next_line = self._start + SECONDS_BETWEEN_LINES
        self._bar = tqdm(total=total, desc=name, unit=unit, disable=None)

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def update(self, count: int) -> None:
        """Adds a number of items that are done."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._bar.disable and now >= self._next_line:
            self._next_line = now + SECONDS_BETWEEN_LINES
            print(self.describe(now - self._start), file=sys.stderr, flush=True)

    def describe(self, seconds: float) -> str:
        """Returns the line that is printed after some seconds of work."""
        remaining = seconds / self._done * (self._total - self._done) if self._done else 0.0
        return (
            f'{self._name}: {self._done:,} of {self._total:,} {self._unit}s, about '
            f'{timedelta(seconds=round(remaining))} left'
        )
