"""JSON files that others wrote."""

import json
from pathlib import Path
from typing import Any

from cpt_jax.runtime.errors import UserError


def read_json_file(path: Path, optional: bool = False, kind: type = dict) -> Any:
    """Returns the content of a JSON file, or {} where it is `optional` and missing.

    Args:
      kind: dict or list: what it must hold.

    Raises:
      UserError: the file is not JSON or of another kind, or it is missing and not `optional`.
    """
    if optional and not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text('utf-8'))
    except FileNotFoundError:
        raise UserError(f'{path}: is missing') from None
    except ValueError as error:
        raise UserError(f'{path}: not JSON ({error})') from None
    if not isinstance(content, kind):
        raise UserError(f'{path}: not a JSON {"list" if kind is list else "object"}')
    return content
