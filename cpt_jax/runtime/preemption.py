"""Detects a preemption: SIGTERM on any process of the run."""

import signal
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

# With several processes, JAX's preemption service handles SIGTERM. It writes this key to the
# coordinator's key-value store
# (xla/tsl/distributed_runtime/preemption/preemption_sync_manager.cc).
_NOTICE = 'RECEIVED_PREEMPTION_NOTICE'


class Preempted(Exception):
    """The run must save and stop, because a process received SIGTERM."""


class Preemption:
    """The state of a request to stop (SIGTERM), which is equal on all processes at the same step.

    With several processes, JAX's preemption service chooses a step after which all of them stop.
    The service compares the numbers that it is called with. Orbax also calls it, with step numbers,
    so a call with any other number could make it miss the chosen step. `should_stop_after` calls it
    once per step, with the step number. Between steps, process 0 instead looks for the service's
    key in the store and broadcasts the answer.

    Attributes:
      requested: whether a stop was requested, as far as this process knows.
    """

    def __init__(self):
        self.requested = False
        self._handler_before: Any = None
        if jax.process_count() == 1:
            self._handler_before = signal.signal(signal.SIGTERM, self._handle_sigterm)

    def restore_handler(self) -> None:
        """Gives SIGTERM the handler back that it had before, for programs that go on."""
        if self._handler_before is not None:
            signal.signal(signal.SIGTERM, self._handler_before)

    def _handle_sigterm(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        self.requested = True

    def should_stop_after(self, step: int) -> bool:
        """Returns whether this step is the last one. Call it after every step, on all processes."""
        if jax.process_count() > 1:
            self.requested = self.requested or multihost_utils.reached_preemption_sync_point(step)
        return self.requested

    def is_requested(self) -> bool:
        """Returns whether to save and stop between two steps.

        All processes must call it at the same point of the program: it waits for all of them.
        """
        if jax.process_count() > 1:
            self.requested = self.requested or bool(
                multihost_utils.broadcast_one_to_all(np.asarray(_has_notice()))
            )
        return self.requested

    def check(self) -> None:
        """Raises Preempted if `is_requested`."""
        if self.is_requested():
            raise Preempted


def _has_notice() -> bool:
    """Returns whether this is process 0 and the preemption service has received SIGTERM."""
    if jax.process_index():
        return False
    try:
        return bool(multihost.get_jax_distributed_client().key_value_try_get(_NOTICE))
    except jax.errors.JaxRuntimeError:  # no such key
        return False
