"""The processes of a run, one a host: how they find each other, and how all of them end when one
does.

A process that stops while the others compute would leave them waiting in their next exchange for as
long as the runtime cares to. So each tells the others why it stops, through the key-value store
that JAX's coordinator keeps, and each listens in a thread. A process that dies without a word (its
machine is gone) is noticed by JAX itself, after its heartbeat's timeout of 100 seconds.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from cpt_jax.runtime.errors import EXIT_CRASHED, EXIT_MISTAKE, UserError

_FAILED, _HEARD, _CALLED = 'cpt_jax/failed', 'cpt_jax/heard', 'cpt_jax/called'
_POLL_SECONDS, _PATIENCE_SECONDS = 2.0, 20.0


def join_processes(coordinator: str = '', processes: int = 1, process: int = 0) -> None:
    """Joins the other processes of a run.

    Args:
      coordinator: host:port of process 0. Without it, a cluster that JAX knows (a TPU pod, Slurm,
        Open MPI) tells all three; where there is none, this process runs alone.
      processes, process: how many there are, and which this one is.

    Raises:
      UserError: several processes and no coordinator.
    """
    if coordinator:
        jax.distributed.initialize(coordinator, processes, process)
        return
    if processes > 1 or process:
        raise UserError(
            f'--processes={processes} --process={process} need --coordinator, the host:port of '
            f'process 0'
        )
    try:
        jax.distributed.initialize()
    except ValueError as error:
        if 'coordinator_address' not in str(error):  # anything but: there is no cluster
            raise


@contextmanager
def shared_fate() -> Iterator[None]:
    """Within it, an exception on one process ends all of them, and each prints why: status 1 for a
    UserError, 70 for anything else.
    """
    if jax.process_count() == 1:
        yield
        return
    store = multihost.get_jax_distributed_client()
    done = threading.Event()
    listener = threading.Thread(target=_listen, args=(store, done), daemon=True)
    listener.start()
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        # What happened here is most likely a consequence: an exchange with a process that is gone.
        if told := _told(store):
            _end(store, *told)
        line, status = ' '.join(str(error).split()), EXIT_MISTAKE
        if not isinstance(error, UserError):
            traceback.print_exc()
            line, status = f'{type(error).__name__}: {line}', EXIT_CRASHED
        store.key_value_set(_FAILED, f'{status}:{jax.process_index()}:{line}', allow_overwrite=True)
        _end(store, line, status)
    finally:
        done.set()
        # A thread that comes back from C++ code while Python ends aborts the process (seen once in
        # 60 runs).
        listener.join()


def check_alike(value: object, line: str) -> None:
    """Raises UserError, with this line, where the processes do not all have the same plain
    value.
    """
    mine = np.frombuffer(
        blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).digest(), np.uint8
    )
    if (multihost_utils.process_allgather(mine).reshape(-1, len(mine)) != mine).any():
        raise UserError(line)


def call(number: int) -> None:
    """On process 0, for the number-th time from 0: an exchange is about to begin, for which the
    others wait in `await_call`.
    """
    store = multihost.get_jax_distributed_client()
    store.key_value_set(f'{_CALLED}/{number}', '1')
    if number >= 1000:  # all have heard of it: exchanges follow each other
        store.key_value_delete(f'{_CALLED}/{number - 1000}')


def await_call(number: int) -> None:
    """Waits for as long as it takes: in an exchange itself, other processes would give up after
    half an hour on CPUs.
    """
    store, seconds = multihost.get_jax_distributed_client(), 0.001
    while not _has(store, f'{_CALLED}/{number}'):
        time.sleep(seconds)
        seconds = min(2 * seconds, 0.25)


def _has(store, key: str) -> bool:
    try:
        return bool(store.key_value_try_get(key))
    except Exception:  # not there, or the coordinator is gone, which JAX itself notices
        return False


def _listen(store, done: threading.Event) -> None:
    """Waits in a thread for the word that another process has failed."""
    while not (told := _told(store)):
        if done.wait(_POLL_SECONDS):
            return
    if not told[0].startswith(f'process {jax.process_index()} '):  # its own word: it ends by itself
        _end(store, *told)


def _told(store) -> tuple[str, int] | None:
    """('process 3 stopped: why', exit status), once one has."""
    try:
        status, process, line = store.key_value_try_get(_FAILED).split(':', 2)
    except Exception:  # not there, or the coordinator is gone, which JAX itself notices
        return None
    return f'process {process} stopped: {line}', int(status)


def _end(store, line: str, status: int) -> NoReturn:
    """Ends this process, process 0 last: it holds the store in which the others read why."""
    print(f'error: {line}', file=sys.stderr, flush=True)
    try:
        store.key_value_set(f'{_HEARD}/{jax.process_index()}', '1', allow_overwrite=True)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while jax.process_index() == 0 and time.monotonic() < deadline:
            if len(store.key_value_dir_get(_HEARD)) == jax.process_count():
                # Who has heard is about to end, and must not find the store gone before.
                time.sleep(_POLL_SECONDS / 2)
                break
            time.sleep(_POLL_SECONDS / 10)
    finally:
        sys.stdout.flush()
        # Without the handlers of a usual exit, which would wait for all processes at a barrier.
        os._exit(status)
