"""Notices that the machine is about to go: SIGTERM, on any of the processes."""

import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):
    """The machine is about to go."""


class Preemption:
    """`asked` is set by SIGTERM; with several processes JAX's preemption service makes all of them notice it at the same question."""

    def __init__(self):
        self.asked, self._questions = False, 0
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        self.asked = True

    def reached(self) -> bool:
        """Is it time to save and stop? Ask often, and on all processes at the same places: after a step, within an evaluation."""
        self._questions += 1
        if jax.process_count() > 1:
            self.asked = self.asked or multihost_utils.reached_preemption_sync_point(self._questions)
        return self.asked

    def check(self) -> None:
        """Raises Preempted if it is time."""
        if self.reached():
            raise Preempted
