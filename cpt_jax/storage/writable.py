"""A check that an output can be written, before the work that it will hold is done."""

import tempfile
from pathlib import Path

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.bucket import find_blob
from cpt_jax.storage.paths import is_on_bucket
from cpt_jax.storage.store_errors import explain_errors


def check_writable(directory: Path, name: str) -> None:
    """Raises UserError unless files can be written into a directory, which need not exist.

    Nothing is created; on a bucket, an empty object is written and deleted.

    Args:
      directory: the directory.
      name: flag or argument that the directory comes from, for the message.
    """
    if is_on_bucket(directory):
        with explain_errors(name, str(directory), 'written'):
            blob = find_blob(directory / '.cpt_jax_write_test')
            blob.upload_from_string(b'')
            blob.delete()
        return
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
