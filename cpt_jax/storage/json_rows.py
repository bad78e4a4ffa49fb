"""Files of JSON objects, a line each, that grow while a program runs and may be killed: a line
counts when it has its end.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from cpt_jax.runtime.errors import UserError


def read_whole_rows(path: Path) -> Iterator[tuple[str, object]]:
    """('file:line', what it holds) of each line; none where there is no file. A line that a killed
    program left torn is no row.

    Raises:
      UserError: with file and line, where a whole line is not JSON.
    """
    data = path.read_bytes() if path.exists() else b''
    for number, line in enumerate(data.split(b'\n')[:-1], 1):
        try:
            yield f'{path}:{number}', json.loads(line)
        except ValueError as error:
            raise UserError(
                f'{path}:{number}: not JSON ({error}): mend or remove the line'
            ) from None


def append_row(path: Path, row: Mapping) -> None:
    """Adds a row, on the disk when this returns. The caller keeps others from doing it too.

    A torn line at the end goes first: it never counted, and whoever was killed in the middle of it
    had not finished.
    """
    with path.open('a+b') as file:
        file.truncate(path.read_bytes().rfind(b'\n') + 1)
        file.write(json.dumps(row, allow_nan=False).encode() + b'\n')
        file.flush()
        os.fsync(file.fileno())
