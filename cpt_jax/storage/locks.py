"""Who does what, where several evaluators share a directory: locks that a killed program cannot
keep.

flock(2) ties a lock to an open file, and the kernel gives it up when the process ends, however that
comes about: there is no time-out to choose and nothing to clean up. It holds between the programs
of a machine, and between machines that share an NFS (Linux sends it to the server). A bucket
mounted by gcsfuse knows the locks of one machine alone: there, let the evaluators of a run be on
one machine.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cpt_jax.runtime.errors import UserError

CLAIMS = '.claims'  # the folder of the locks, in the directory that is shared


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """True: this program alone has the claim until the end of the block. False: another one has it.

    The file is there while somebody has the claim, and stays behind somebody who was killed: the
    next one takes it over.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        mine = _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, path) and _is(descriptor, path)
        try:
            yield mine
        finally:
            if mine:
                path.unlink()
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits until no other program is in a block with the same file, which is made, and stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(descriptor, fcntl.LOCK_EX, path)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, how: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(
            f'{path.parent}: its file system has no locks ({error.strerror}): write to another one'
        ) from None
    return True


def _is(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of that name: whoever had the claim may have removed
    it between our opening and our lock.
    """
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
