"""A check that a path is on the local file system, for files that are renamed or need a lock."""

import re
from pathlib import Path

from cpt_jax.runtime.errors import UserError


def local_path(path: str | Path, name: str) -> Path:
    """Returns the path if it is not a URL.

    Args:
      path: a path of the file system.
      name: flag or argument that the path comes from, for the message.

    Raises:
      UserError: the path is a URL, such as gs://bucket/folder.
    """
    # The pattern has one slash, because Path turns gs:// into gs:/.
    if re.match(r'[a-zA-Z][a-zA-Z0-9+.-]+:/', str(path)):
        raise UserError(
            f'{name} {path}: only paths of the file system are supported: mount the bucket '
            f'(gcsfuse) and give the mounted path'
        )
    return Path(path)
