"""Notices that the machine is about to go: SIGTERM, on any of the processes."""

import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):
    """The machine is about to go."""


class Preemption:
    """`asked` is set by SIGTERM; with several processes JAX's preemption service makes all of them notice it after the same step.

    That service compares the numbers of questions, and Orbax asks it too, with the numbers of steps. So with several processes the
    question is asked once a step, with its number: a signal within an evaluation is noticed after it and one more step.
    """

    def __init__(self):
        self.asked = False
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        self.asked = True

    def reached(self, step: int) -> bool:
        """Should this step be the last one? Ask after every step, on all processes."""
        if jax.process_count() > 1:
            self.asked = self.asked or multihost_utils.reached_preemption_sync_point(step)
        return self.asked

    def check(self) -> None:
        """Raises Preempted if it is time to save and stop."""
        if self.asked:
            raise Preempted
