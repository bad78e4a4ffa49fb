"""Strict readers of the text and JSON lines files of evaluation data.

Every error message names the file and the line.
"""

import glob
import gzip
import json
import zlib
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from etils import epath

from cpt_jax.runtime.errors import UserError


def read_lines(path: epath.Path, blank: bool = False) -> Iterator[tuple[str, str]]:
    """Yields ('file:line', text) for each line of a UTF-8 file, with or without a BOM.

    Args:
      path: the file; a file whose name ends in .gz is decompressed.
      blank: whether to yield blank lines too.

    Raises:
      UserError: the file is missing, cannot be read, is not UTF-8 or a damaged gzip file.
    """
    try:
        with (
            path.open('rb') as packed,
            gzip.open(packed) if path.name.endswith('.gz') else packed as lines,
        ):
            for number, line in enumerate(lines, 1):
                if blank or line.strip():
                    yield f'{path}:{number}', line.decode('utf-8-sig').rstrip('\r\n')
    except UnicodeDecodeError as error:
        raise UserError(f'{path}:{number}: not UTF-8 ({error.reason}): convert the file') from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f'{path}: a broken gzip file ({error}): download it again') from None
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    except OSError as error:
        raise UserError(f'{path}: cannot be read: {error.strerror}') from None


def read_json_lines(path: epath.Path) -> Iterator[tuple[str, dict]]:
    """Yields ('file:line', object) for each line that is not blank.

    Raises:
      UserError: a line is not a JSON object, or see `read_lines`.
    """
    for where, line in read_lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f'{where}: not JSON ({error.msg} at column {error.colno}): fix or remove the line'
            ) from None
        # json raises these for an integer of thousands of digits and for a thousand open brackets.
        except (ValueError, RecursionError) as error:
            raise UserError(
                f'{where}: JSON that cannot be read ({error}): fix or remove the line'
            ) from None
        if not isinstance(row, dict):
            raise UserError(
                f'{where}: a JSON object such as {{"_id": "1", ...}} is expected, not {line[:40]!r}'
            )
        yield where, row


def get_text_field(row: dict, where: str, *names: str) -> str:
    """Returns the text of a field of a row.

    Args:
      row: an object from `read_json_lines`.
      where: 'file:line' of the row, for messages.
      names: names of the field; the first one that the row has is used.

    Raises:
      UserError: the row has none of the names, or the field is blank or not a string.
    """
    name = next((name for name in names if name in row), None)
    if name is None:
        raise UserError(
            f'{where}: no field {" or ".join(map(repr, names))}; the line has '
            f'{", ".join(map(repr, row)) or "none"}'
        )
    if not isinstance(row[name], str) or not row[name].strip():
        raise UserError(f'{where}: field {name!r} holds no text: fill it in or remove the line')
    return row[name]


def find_paths(folder: epath.Path | Path, pattern: str) -> list[epath.Path]:
    """Returns the paths below a folder that match a pattern, sorted.

    `folder.glob(pattern)` of epath would take [ ], * and ? in the folder's own path for wildcards.
    """
    return sorted(epath.Path(glob.escape(str(folder))).glob(pattern))


def compute_file_fingerprint(*paths: epath.Path) -> str:
    """Returns a digest of the files' bytes: 32 hex digits."""
    digest = blake2b(digest_size=16)
    for path in paths:
        with path.open('rb') as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
