"""Paths that the file system must have: what is written beside others' files, or locked."""

import re
from pathlib import Path

from cpt_jax.runtime.errors import UserError


def local_path(path: str | Path, name: str) -> Path:
    """Returns the path.

    Args:
      name: the flag or argument that it was given with, for messages.

    Raises:
      UserError: it is in a bucket.
    """
    # A Path has one slash of the two.
    if re.match(r'[a-zA-Z][a-zA-Z0-9+.-]+:/', str(path)):
        raise UserError(
            f'{name} {path}: only paths of the file system so far; mount the bucket (gcsfuse) and '
            f'give that path'
        )
    return Path(path)
