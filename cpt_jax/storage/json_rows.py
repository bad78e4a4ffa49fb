"""JSON lines files that programs append to.

A program may be killed while it writes, so a last line without a newline is ignored.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_checks import is_integer
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
        except (ValueError, RecursionError) as error:
            raise UserError(
                f'{path}:{number}: not JSON ({error}): fix or remove the line'
            ) from None


def read_step_rows(data: bytes) -> tuple[list[dict[str, Any]], list[int]]:
    """Returns the rows of a metrics.jsonl file, and the numbers of the lines that are none.

    A row is an object with an integer `step`. Blank lines, and a last line without a
    newline, which a killed program left, are none of both.

    Args:
      data: content of the file.
    """
    *lines, last = data.split(b'\n')
    rows = []
    damaged = []
    for number, line in enumerate(lines, 1):
        row = _parse_step_row(line)
        if row is not None:
            rows.append(row)
        elif line.strip():
            damaged.append(number)
    row = _parse_step_row(last)
    return (rows if row is None else [*rows, row]), damaged


def describe_damage(path: object, damaged: Sequence[int]) -> str:
    """Returns a line about damaged lines of a file, from `read_step_rows`."""
    return (
        f'{path}: {len(damaged):,} lines are no rows of metrics (first: line {damaged[0]}); the '
        f'others are used'
    )


def select_numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Returns the values of a row that are numbers, nan included, that a float can hold."""
    return {name: value for name, value in row.items() if _is_float(value)}


def _parse_step_row(line: bytes) -> dict[str, Any] | None:
    """Returns the row in a line; None if there is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and _is_step(row.get('step')) else None


def _is_step(value: object) -> bool:
    return is_integer(value) and 0 <= value < 2**63  # type: ignore[operator]


def _is_float(value: object) -> bool:
    return isinstance(value, float) or (is_integer(value) and abs(value) < 2**63)  # type: ignore[arg-type]


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
