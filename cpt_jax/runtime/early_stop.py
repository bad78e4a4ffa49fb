"""What SIGTERM does before a training program can handle it (runtime/preemption.py).

Imports nothing but the standard library, so that a program can call it in its first statement.
"""

import os
import signal
import sys
from types import FrameType

from cpt_jax.runtime.errors import EXIT_PREEMPTED


def exit_on_sigterm() -> None:
    """Makes SIGTERM end this process with the exit status of a preemption.

    Nothing has been trained yet, so there is nothing to save. `Preemption` and, with several
    processes, JAX's preemption service replace the handler.
    """
    signal.signal(signal.SIGTERM, _exit_at_once)


def _exit_at_once(signum: int, frame: FrameType | None) -> None:
    del signum, frame
    print('SIGTERM before training: run the same command again', file=sys.stderr, flush=True)
    # An exception could be caught by the module that is being imported.
    os._exit(EXIT_PREEMPTED)
