"""JSON lines files that programs append to.

A program may be killed while it writes, so a last line without a newline is ignored.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.paths import is_on_bucket


def read_complete_rows(path: Path) -> Iterator[tuple[str, object]]:
    """Yields ('file:line', value) for each complete line; nothing if the file is missing.

    A last line without a newline is skipped: the program that wrote it was killed.

    Raises:
      UserError: a complete line is not JSON.
    """
    data = path.read_bytes() if path.exists() else b''
    for number, line in enumerate(data.split(b'\n')[:-1], 1):
        try:
            yield f'{path}:{number}', json.loads(line)
        except ValueError as error:
            raise UserError(
                f'{path}:{number}: not JSON ({error}): fix or remove the line'
            ) from None


def append_row(path: Path, row: Mapping) -> None:
    """Appends a row and flushes it to disk. The caller must prevent concurrent writes.

    First removes an incomplete line at the end, which a killed program left. An object of a bucket
    is written again with the row.
    """
    line = json.dumps(row, allow_nan=False).encode() + b'\n'
    if is_on_bucket(path):
        path.write_bytes((path.read_bytes() if path.exists() else b'') + line)
        return
    with path.open('a+b') as file:
        file.truncate(path.read_bytes().rfind(b'\n') + 1)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
