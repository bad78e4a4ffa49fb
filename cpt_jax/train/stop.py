"""Notices that the machine is about to go: SIGTERM, on any of the processes."""

import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Set by SIGTERM. With several processes JAX's preemption service makes all of them stop after the same step."""

    def __init__(self):
        self._asked = False
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        self._asked = True

    def reached(self, step: int) -> bool:
        """Should this step be the last one? Ask after every step."""
        return self._asked if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)
