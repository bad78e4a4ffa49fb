"""Files of rows, as evaluation data come: read strictly, so that every complaint names file and
line.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from hashlib import blake2b

from etils import epath

from cpt_jax.runtime.errors import UserError


def read_lines(path: epath.Path, blank: bool = False) -> Iterator[tuple[str, str]]:
    """('file:line', text) for each line, or each that is not blank; a name that ends in .gz is
    unpacked. UTF-8, with or without a mark.
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


def read_json_lines(path: epath.Path) -> Iterator[tuple[str, dict]]:
    """('file:line', object) for each line. Raises UserError for a line that is not a JSON
    object.
    """
    for where, line in read_lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f'{where}: not JSON ({error.msg} at column {error.colno}): mend or remove the line'
            ) from None
        # A number of thousands of digits, or a thousand brackets.
        except (ValueError, RecursionError) as error:
            raise UserError(
                f'{where}: JSON that cannot be read ({error}): mend or remove the line'
            ) from None
        if not isinstance(row, dict):
            raise UserError(
                f'{where}: a JSON object such as {{"_id": "1", ...}} is expected, not {line[:40]!r}'
            )
        yield where, row


def text_field(row: dict, where: str, *names: str) -> str:
    """The text under the first of `names` that the row has. Raises UserError where it is missing,
    blank or not text.
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


def file_fingerprint(*paths: epath.Path) -> str:
    """32 hex digits of the files' bytes."""
    total = blake2b(digest_size=16)
    for path in paths:
        with path.open('rb') as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()
