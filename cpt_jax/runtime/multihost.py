"""The processes of a multi-host run (one per host): how they connect, and how all exit together.

If one process stopped while the others compute, the others would wait in their next collective
operation until the runtime's timeout. So a process that fails writes the reason to the key-value
store of JAX's coordinator, and every process polls that store in a thread. A process that dies
without writing a reason (for example, because its machine is gone) is detected by JAX after the
heartbeat timeout of 100 seconds.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from cpt_jax.runtime.errors import EXIT_CRASHED, EXIT_MISTAKE, UserError
from cpt_jax.runtime.local_gpus import list_own_gpus

# Keys in the coordinator's key-value store.
_FAILED = 'cpt_jax/failed'  # 'exit status:process index:message' of a process that failed
_HEARD = 'cpt_jax/heard'  # one key below it for each process that is about to exit
_CALLED = 'cpt_jax/called'  # one key below it for each announced exchange

# Called on this process before a failure ends it; see `clean_up_on_failure`.
_cleanups: list[Callable[[], None]] = []

# Held by the thread that exits this process: the main thread and the one that watches the others
# may learn of a failure at the same time.
_exiting = threading.Lock()

_POLL_SECONDS = 2.0
_EXIT_TIMEOUT_SECONDS = 20.0  # maximum time that process 0 keeps the store for the other processes


def join_processes(coordinator: str = '', processes: int = 1, process: int = 0) -> None:
    """Connects this process with the other processes of a run.

    Args:
      coordinator: host:port of process 0; default '': JAX detects a cluster (a TPU pod, Slurm,
        Open MPI) and takes all three arguments from it. Without a cluster, the run has one process.
      processes: number of processes.
      process: index of this process, from 0.

    Raises:
      UserError: `processes` or `process` is set without a coordinator, or the processes of a host
        cannot divide its GPUs evenly.
    """
    if coordinator:
        jax.distributed.initialize(coordinator, processes, process)
        return
    if processes > 1 or process:
        raise UserError(
            f'--processes={processes} --process={process} need --coordinator: set it to the '
            f'host:port of process 0'
        )
    try:
        jax.distributed.initialize(local_device_ids=list_own_gpus())
    except ValueError as error:
        # JAX raises a ValueError about coordinator_address if it detects no cluster.
        if 'coordinator_address' not in str(error):
            raise


@contextmanager
def exit_together() -> Iterator[None]:
    """Makes an exception in the block on one process end all processes.

    Each process prints the reason. The exit status is 1 for a UserError and 70 for any other
    exception.
    """
    if jax.process_count() == 1:
        yield
        return
    store = multihost.get_jax_distributed_client()
    done = threading.Event()
    listener = threading.Thread(target=_watch_for_failure, args=(store, done), daemon=True)
    listener.start()
    try:
        check_equal_devices(jax.devices())
        yield
    except (Exception, KeyboardInterrupt) as error:
        # If another process has failed, this exception is most likely a consequence: a collective
        # operation with a process that is gone.
        if failure := _read_failure(store):
            _exit_process(store, *failure)
        line = ' '.join(str(error).split())
        status = EXIT_MISTAKE
        if not isinstance(error, UserError):
            traceback.print_exc()
            line = f'{type(error).__name__}: {line}'
            status = EXIT_CRASHED
        store.key_value_set(_FAILED, f'{status}:{jax.process_index()}:{line}', allow_overwrite=True)
        _exit_process(store, line, status)
    finally:
        done.set()
        # A thread that returns from C++ code while the interpreter shuts down aborts the process
        # (seen once in 60 runs).
        listener.join()


@contextmanager
def clean_up_on_failure(clean_up: Callable[[], None] | None) -> Iterator[None]:
    """Calls a function before this process exits, if any process fails during the block.

    Only in a block of `exit_together`. The function runs in the thread that watches the others, so
    this process may still be at work in the block. Process 0 calls its function when the others
    have called theirs and are about to exit, or after _EXIT_TIMEOUT_SECONDS.

    Args:
      clean_up: the function; None: this process has nothing to clean up.
    """
    added = [clean_up] if clean_up else []
    _cleanups.extend(added)
    yield
    for function in added:
        _cleanups.remove(function)


def check_equal_devices(devices: Sequence[jax.Device]) -> None:
    """Raises UserError if the processes have different numbers of devices, with which JAX cannot
    exchange values between them.
    """
    counts = Counter(device.process_index for device in devices)
    if len(set(counts.values())) > 1:
        numbers = ', '.join(str(counts[process]) for process in sorted(counts))
        raise UserError(
            f'the processes have different numbers of devices ({numbers}): give each process the '
            f'same number'
        )


def check_processes_agree(value: object, line: str) -> None:
    """Raises UserError with the message `line` unless `value` is equal on all processes.

    Args:
      value: a value that JSON can hold.
      line: the message of the error.
    """
    data = json.dumps(value, sort_keys=True).encode()
    digest = np.frombuffer(blake2b(data, digest_size=16).digest(), np.uint8)
    digests = multihost_utils.process_allgather(digest).reshape(-1, len(digest))
    if (digests != digest).any():
        raise UserError(line)


def announce_exchange(number: int) -> None:
    """Announces an exchange, for which the other processes wait in `await_exchange`.

    Only process 0 may call it.

    Args:
      number: index of the exchange in this run, from 0.
    """
    store = multihost.get_jax_distributed_client()
    store.key_value_set(f'{_CALLED}/{number}', '1')
    # Exchanges are sequential, so every process has seen all but the latest announcement. Old keys
    # are deleted to bound the size of the store.
    if number >= 1000:
        store.key_value_delete(f'{_CALLED}/{number - 1000}')


def await_exchange(number: int) -> None:
    """Waits, without a timeout, until process 0 announces the exchange with this index.

    Without this wait, a collective operation on CPU would time out after half an hour.
    """
    store = multihost.get_jax_distributed_client()
    seconds = 0.001
    while not _has_key(store, f'{_CALLED}/{number}'):
        time.sleep(seconds)
        seconds = min(2 * seconds, 0.25)


def _has_key(store, key: str) -> bool:
    try:
        return bool(store.key_value_try_get(key))
    except Exception:  # no such key, or the coordinator is gone, which JAX itself detects
        return False


def _watch_for_failure(store, done: threading.Event) -> None:
    """Polls the store until `done` is set, and exits this process if another one has failed."""
    while not (failure := _read_failure(store)):
        if done.wait(_POLL_SECONDS):
            return
    # After its own failure, the main thread ends this process.
    if not failure[0].startswith(f'process {jax.process_index()} '):
        _exit_process(store, *failure)


def _read_failure(store) -> tuple[str, int] | None:
    """Returns ('process 3 stopped: <reason>', exit status), or None if no process has failed."""
    try:
        status, process, line = store.key_value_try_get(_FAILED).split(':', 2)
    except Exception:  # no such key, or the coordinator is gone, which JAX itself detects
        return None
    return f'process {process} stopped: {line}', int(status)


def _exit_process(store, line: str, status: int) -> NoReturn:
    """Prints the reason and exits this process.

    Process 0 exits last, because it holds the store from which the others read the reason.
    """
    _exiting.acquire()
    print(f'error: {line}', file=sys.stderr, flush=True)
    try:
        if jax.process_index() != 0:
            _clean_up()
        store.key_value_set(f'{_HEARD}/{jax.process_index()}', '1', allow_overwrite=True)
        deadline = time.monotonic() + _EXIT_TIMEOUT_SECONDS
        while jax.process_index() == 0 and time.monotonic() < deadline:
            if len(store.key_value_dir_get(_HEARD)) == jax.process_count():
                # The other processes are about to exit; the store must outlive them.
                time.sleep(_POLL_SECONDS / 2)
                break
            time.sleep(_POLL_SECONDS / 10)
    finally:
        if jax.process_index() == 0:
            _clean_up()
        sys.stdout.flush()
        # sys.exit would run JAX's exit handlers, which wait for all processes at a barrier.
        os._exit(status)


def _clean_up() -> None:
    for function in _cleanups:
        with suppress(Exception):  # the reason is known and has been printed
            function()
