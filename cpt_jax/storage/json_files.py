"""Reading and writing JSON files."""

import json
from pathlib import Path
from typing import Any

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.atomic_write import write_atomically


def read_json_file(path: Path, optional: bool = False, kind: type = dict) -> Any:
    """Returns the content of a JSON file.

    Args:
      path: the file.
      optional: whether the file may be missing; {} is then returned.
      kind: type of the content, dict or list.

    Raises:
      UserError: the file cannot be read, is not JSON, its content has another type, or it is
        missing and not `optional`.
    """
    if optional and not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text('utf-8'))
    except FileNotFoundError:
        raise UserError(f'{path}: is missing') from None
    except OSError as error:
        raise UserError(f'{path}: cannot be read: {error.strerror}') from None
    # json raises the last one for thousands of open brackets.
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path}: not JSON ({error})') from None
    if not isinstance(content, kind):
        raise UserError(f'{path}: not a JSON {"list" if kind is list else "object"}')
    return content


def write_json(
    path: Path, content: object, indent: int | None = 2, allow_nan: bool = False
) -> None:
    """Writes a JSON file atomically.

    Args:
      path: the file; its folder must exist.
      content: a value that JSON can hold.
      indent: spaces per indentation level; None writes a single line.
      allow_nan: whether to write numbers that are not finite as NaN and Infinity, which strict JSON
        parsers reject.

    Raises:
      ValueError: a number is not finite and `allow_nan` is False.
    """
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=allow_nan)
    write_atomically(path, text + '\n')
