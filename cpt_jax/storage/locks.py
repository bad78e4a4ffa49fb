"""File locks between programs that share a directory; the lock of a killed program is released.

flock(2) ties a lock to an open file, and the kernel releases it when the process ends for any
reason, so there is no timeout to choose and nothing to clean up. The locks work between the
processes of one machine, and between machines that share an NFS directory (Linux sends the lock to
the server). On a bucket mounted with gcsfuse they work only within one machine: run all evaluators
of a run on one machine there. On a path gs://, a lease takes the place of the lock (lease.py).
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.lease import try_lease, wait_for_lease
from cpt_jax.storage.paths import is_on_bucket


class LocksNotSupported(UserError):
    """The file system has no locks."""


LOCKS_FOLDER = '.claims'  # folder of the lock files, in the shared directory


@contextmanager
def try_lock(path: Path, note: str = '') -> Iterator[bool]:
    """Tries to take a lock without waiting, and releases it at the end of the block.

    The lock file is removed on release. A killed program leaves the file without a lock, and the
    next program takes it over.

    Args:
      path: the lock file.
      note: content of the file while this program has the lock.

    Yields:
      True if this program has the lock, False if another one has it.
    """
    if is_on_bucket(path):
        with try_lease(path, note) as mine:
            yield mine
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        mine = _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, path)
        mine = mine and _is_file_at(descriptor, path)
        if mine:
            os.truncate(descriptor, 0)
            os.write(descriptor, note.encode())
        try:
            yield mine
        finally:
            if mine:
                path.unlink()
    finally:
        os.close(descriptor)


@contextmanager
def wait_for_lock(path: Path, message: str = '') -> Iterator[None]:
    """Waits for a lock, and releases it at the end of the block. The lock file is not removed.

    Args:
      path: the lock file.
      message: warning to print if another program has the lock; not for a bucket.
    """
    if is_on_bucket(path):
        with wait_for_lease(path):
            yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if message and not _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, path):
            logging.warning(message)
        _flock(descriptor, fcntl.LOCK_EX, path)
        yield
    finally:
        os.close(descriptor)


def _flock(descriptor: int, operation: int, path: Path) -> bool:
    """Returns whether flock(2) took the lock; False only for a non-blocking operation.

    Raises:
      LocksNotSupported: the file system does not support locks.
    """
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        raise LocksNotSupported(
            f'{path.parent}: the file system does not support locks ({error.strerror}): use a '
            f'directory on another one'
        ) from None
    return True


def _is_file_at(descriptor: int, path: Path) -> bool:
    """Returns whether the open file is still the one at `path`.

    The previous holder may have removed it after this process opened it and before it took the
    lock.
    """
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
