"""Atomic writes: a file, or an object of a bucket, is either complete or absent."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cpt_jax.storage.paths import is_on_bucket


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file that is renamed to `path` at the end of the block.

    If the block raises or the program is killed, the old file at `path` stays. The data are on the
    disk before the file is renamed, so a loss of power leaves the old file or the new one.

    A file system that cannot rename files gets a copy, which is not atomic.

    Yields:
      A binary file, open for writing.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix='.part')
    try:
        with os.fdopen(descriptor, 'wb') as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        os.chmod(temporary, 0o644)  # mkstemp lets only the owner read it
        _replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _replace(temporary: str, path: Path) -> None:
    try:
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENOSYS, errno.EPERM, errno.EXDEV, errno.EIO):
            raise
        shutil.copyfile(temporary, path)
        os.unlink(temporary)


def write_atomically(path: Path, data: bytes | str) -> None:
    """Writes a file or an object of a bucket atomically; text is encoded as UTF-8."""
    data = data.encode('utf-8') if isinstance(data, str) else data
    if is_on_bucket(path):  # an object appears when it is complete
        path.write_bytes(data)
        return
    with open_atomically(path) as file:
        file.write(data)
