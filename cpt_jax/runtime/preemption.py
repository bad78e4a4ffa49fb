"""Notices that the machine is about to go: SIGTERM, on any of the processes."""

import signal
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

# Where JAX's preemption service, which owns the signal's handler, leaves its notice in the
# key-value store of the coordinator
# (xla/tsl/distributed_runtime/preemption/preemption_sync_manager.cc).
_NOTICE = 'RECEIVED_PREEMPTION_NOTICE'


class Preempted(Exception):
    """The machine is about to go."""


class Preemption:
    """`asked` is set by SIGTERM; with several processes JAX's preemption service makes all of them
    notice it after the same step.

    That service compares the numbers of questions, and Orbax asks it too, with the numbers of
    steps: a question with any other number could make it miss the step at which all should stop. So
    it is asked once a step, with the step's number. Elsewhere process 0 looks for its notice, and
    tells the others.
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

    def noticed(self) -> bool:
        """Is it time to save and stop, between two steps? Ask on all processes at the same place:
        they wait for each other.
        """
        if jax.process_count() > 1:
            self.asked = self.asked or bool(
                multihost_utils.broadcast_one_to_all(np.asarray(_notice_is_there()))
            )
        return self.asked

    def check(self) -> None:
        """Raises Preempted if it is `noticed`."""
        if self.noticed():
            raise Preempted


def _notice_is_there() -> bool:
    if jax.process_index():
        return False
    try:
        return bool(multihost.get_jax_distributed_client().key_value_try_get(_NOTICE))
    except jax.errors.JaxRuntimeError:  # not found
        return False
