"""The copies of remote files in the cache: which of them are used, and room for new ones.

A copy is an entry of the cache: a folder with the files, their checksums and two lock files. A
program holds a shared lock on `in_use` until it ends, so that no other one removes what it reads.
"""

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.cache import get_cache_folder, get_free_bytes

FOLDER = 'remote'  # folder of the copies in the cache
LIMIT = 'CPT_JAX_COPIES_GB'  # environment variable: bytes of all copies, in GB
LOCK = 'lock'
_IN_USE = 'in_use'

# Entry -> the descriptor of its file `in_use`, which this process keeps open until it ends.
_used: dict[Path, int] = {}


def mark_as_used(entry: Path) -> None:
    """Keeps an entry from being removed until this process ends. The caller has its lock."""
    if entry not in _used:
        _used[entry] = os.open(entry / _IN_USE, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(_used[entry], fcntl.LOCK_SH)
    os.utime(entry / _IN_USE)


def make_room(needed: int, what: str) -> None:
    """Removes the copies that were not used for the longest time, until a new one fits.

    Nothing is removed if it fits. Copies that a program uses are kept.

    Args:
      needed: bytes of the new copy.
      what: what is copied, for the message.

    Raises:
      UserError: it would not fit without all unused copies either, or the limit is no number.
    """
    folder = get_cache_folder()
    limit = _read_limit()

    def fits(free: int, copied: int) -> bool:
        return needed < free and (limit is None or copied + needed <= limit)

    if limit is None and fits(get_free_bytes(folder), 0):
        return
    entries = sorted((folder / FOLDER).glob('*/'), key=_get_last_use)
    sizes = {entry: _measure(entry) for entry in entries if entry not in _used}
    copied = sum(map(_measure, entries))
    removable = sum(sizes.values())
    # Nothing is removed in vain.
    if fits(get_free_bytes(folder) + removable, copied - removable):
        for entry, size in sizes.items():
            if fits(get_free_bytes(folder), copied):
                return
            if _remove(entry):
                copied -= size
    free = get_free_bytes(folder)
    if not fits(free, copied):
        bound = '' if limit is None else f', and {LIMIT} allows {limit / 1e9:,.1f} GB'
        raise UserError(
            f'{what}: {needed / 1e9:,.1f} GB do not fit into the cache ({folder}, '
            f'{free / 1e9:,.1f} GB are free{bound}): set CPT_JAX_CACHE to a folder on a larger disk'
        )


def _read_limit() -> float | None:
    text = os.environ.get(LIMIT, '')
    try:
        limit = float(text) * 1e9 if text else None
    except ValueError:
        limit = -1
    if limit is not None and not limit >= 0:
        raise UserError(f'{LIMIT}={text}: must be a number of GB')
    return limit


def _get_last_use(entry: Path) -> float:
    """Returns when an entry was last used; copies of earlier versions count as oldest."""
    try:
        return (entry / _IN_USE).stat().st_mtime
    except OSError:
        return 0.0


def _measure(entry: Path) -> int:
    return sum(path.stat().st_size for path in entry.rglob('*') if path.is_file())


def _remove(entry: Path) -> bool:
    """Removes the files of an entry unless a program uses or fills it; returns whether it did.

    The lock files stay: a program that waits for the lock then copies the files again.
    """
    try:
        with (
            _try_exclusive(entry / LOCK) as is_not_filled,
            _try_exclusive(entry / _IN_USE) as is_idle,
        ):
            if entry in _used or not (is_not_filled and is_idle):
                return False
            for path in entry.iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name not in (LOCK, _IN_USE):
                    path.unlink(missing_ok=True)
    except OSError as error:  # a copy of another user, for example
        logging.warning('%s: cannot be removed (%s)', entry, error.strerror)
        return False
    logging.info('%s: removed an old copy', entry)
    return True


@contextmanager
def _try_exclusive(path: Path) -> Iterator[bool]:
    """Tries to lock a file without waiting; yields whether it did."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_locked = True
        except OSError:
            is_locked = False
        yield is_locked
    finally:
        os.close(descriptor)
