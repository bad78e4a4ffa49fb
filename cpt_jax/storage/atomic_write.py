"""Atomic writes: a file is either complete or absent."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file that is renamed to `path` at the end of the block.

    If the block raises or the program is killed, the old file at `path` stays.

    Yields:
      A binary file, open for writing.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix='.part')
    try:
        with os.fdopen(descriptor, 'wb') as file:
            yield file
        os.chmod(temporary, 0o644)  # mkstemp lets only the owner read it
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_atomically(path: Path, data: bytes | str) -> None:
    """Writes a file atomically; text is encoded as UTF-8."""
    with open_atomically(path) as file:
        file.write(data.encode('utf-8') if isinstance(data, str) else data)
