"""The training that owns a run's directory: there is at most one at a time.

Two trainings in one directory would mix their checkpoints and metrics. Evaluators share the
directory with the training; they have locks of their own (cpt_jax/evals/follow.py).
"""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime

import jax

from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.lease import STALE_SECONDS, read_note, wait_until_renewed_or_stale
from cpt_jax.storage.locks import LocksNotSupported, try_lock
from cpt_jax.storage.paths import is_on_bucket
from cpt_jax.storage.store_errors import explain_errors


@contextmanager
def own_run(run: RunDir) -> Iterator[None]:
    """Makes this program the owner of a run's directory until the end of the block.

    Process 0 owns it for all processes of the program. If it is refused, its error ends all of them
    (cpt_jax/runtime/multihost.py). On a file system the owner has a lock, which the kernel releases
    when the process ends for any reason. On a bucket it has a lease; after a kill, the next
    training waits until the lease has ended.

    Raises:
      UserError: another training owns the directory, or the directory cannot be written.
    """
    if jax.process_index():
        yield
        return
    is_new = not is_on_bucket(run.path) and not run.path.exists()
    try:
        with ExitStack() as stack:
            _take_lock(run, stack)
            yield
    finally:
        # A training that stopped at a wrong key leaves no empty directory.
        if is_new and run.path.is_dir() and not any(run.path.iterdir()):
            run.path.rmdir()


def _take_lock(run: RunDir, stack: ExitStack) -> None:
    """Takes the lock until `stack` is closed."""
    flag = f'--workdir {run.path}'
    note = _describe_owner()
    try:
        if is_on_bucket(run.path):
            with explain_errors('--workdir', str(run.path), 'written'):
                mine = _take_lease(run, stack, note)
        else:
            mine = stack.enter_context(try_lock(run.owner, note))
    except LocksNotSupported:
        print(
            f'{run.path}: its file system has no locks, so a second training in this directory '
            f'would not be refused',
            flush=True,
        )
        return
    except OSError as error:
        raise UserError(f'{flag}: cannot be written ({error.strerror})') from None
    if not mine:
        raise UserError(
            f'{flag}: is being trained by {_read_owner(run)}: wait until it ends, stop it, or give '
            f'another --workdir'
        )


def _take_lease(run: RunDir, stack: ExitStack, note: str) -> bool:
    """Takes the lease, once that of a killed training has ended; returns whether it did."""
    if stack.enter_context(try_lock(run.owner, note)):
        return True
    print(
        f'{run.path}: owned by {_read_owner(run)}; if that was killed, its lease ends within '
        f'{STALE_SECONDS:.0f} s: waiting',
        flush=True,
    )
    wait_until_renewed_or_stale(run.owner)
    return stack.enter_context(try_lock(run.owner, note))


def _read_owner(run: RunDir) -> str:
    note = read_note(run.owner) if is_on_bucket(run.path) else run.owner.read_text('utf-8')
    return note or 'another program'


def _describe_owner() -> str:
    now = datetime.now().astimezone().isoformat(sep=' ', timespec='seconds')
    return f'process {os.getpid()} on {socket.gethostname()} (since {now})'
