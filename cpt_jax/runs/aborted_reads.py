"""What Python prints about the other reads of a checkpoint when one of them has failed.

Orbax waits for none of them and closes their event loop. Each would print a page to stderr, below
the one line that says which checkpoint is damaged.
"""

import functools
import logging
import sys
import warnings
from typing import Any

_OF_ABORTED_READS = 'Event loop is closed', 'Encountered error while reading array index'


@functools.cache
def silence_aborted_reads() -> None:
    """Hides these messages until the end of the program.

    To be called before a checkpoint is read: the first of them appear before its error is raised.
    """
    logging.getLogger('asyncio').setLevel(logging.CRITICAL)
    warnings.filterwarnings('ignore', 'coroutine .* was never awaited', RuntimeWarning)
    report = sys.unraisablehook

    def report_others(unraisable: Any) -> None:
        if not str(unraisable.exc_value).startswith(_OF_ABORTED_READS):
            report(unraisable)

    sys.unraisablehook = report_others
