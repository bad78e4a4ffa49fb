"""When a checkpoint is due by the time since the last one."""

import time

import jax
import numpy as np
from jax.experimental import multihost_utils


class SaveTimer:
    """Counts the time since the last save.

    With several processes, the clock of process 0 decides for all, because all must save the same
    step.
    """

    def __init__(self, minutes: float, between_checks: int):
        """Starts the timer.

        Args:
          minutes: time between saves; 0: no save is due by time.
          between_checks: steps between two looks at the clock, which are an exchange between the
            processes.
        """
        self._seconds = 60 * minutes
        self._between_checks = between_checks
        self._last = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Returns whether a save is due after this step. Call it on all processes."""
        if not self._seconds or step % self._between_checks:
            return False
        is_due = time.monotonic() - self._last >= self._seconds
        if jax.process_count() > 1:
            is_due = bool(multihost_utils.broadcast_one_to_all(np.asarray(is_due)))
        return is_due

    def restart(self) -> None:
        """Starts anew, after a save."""
        self._last = time.monotonic()
