"""A check that an output can be written, before the work that it will hold is done."""

import tempfile
from pathlib import Path

from cpt_jax.runtime.errors import UserError


def check_writable(directory: Path, name: str) -> None:
    """Raises UserError unless files can be written into a directory, which need not exist.

    Nothing is created.

    Args:
      directory: the directory.
      name: flag or argument that the directory comes from, for the message.
    """
    existing = directory.absolute()
    try:
        while not existing.exists():
            existing = existing.parent
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(
            f'{name} {directory}: cannot be written ({existing}: {error.strerror}): choose another '
            f'directory'
        ) from None
