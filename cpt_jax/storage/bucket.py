"""Objects of Google Cloud Storage, and its errors as lines for the user."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from cpt_jax.runtime.errors import UserError

# Meaning of the HTTP status of a request to a bucket.
_STATUS = {
    401: 'no valid credentials: run gcloud auth application-default login',
    403: 'access is denied: give your account, or the service account of this machine, the role '
    'roles/storage.objectUser on the bucket',
    404: 'no such bucket or object',
    429: 'too many requests: start again later',
}


@cache
def _make_client() -> Any:
    try:
        from google.cloud import storage
    except ImportError:
        raise UserError(
            "paths on gs:// need a package that is not installed: pip install 'cpt_jax[gcs]'"
        ) from None
    return storage.Client()


def find_blob(path: Path) -> Any:
    """Returns the object of a path gs://bucket/name, as a `google.cloud.storage.Blob`."""
    bucket, _, name = str(path).removeprefix('gs://').partition('/')
    return _make_client().bucket(bucket).blob(name)


def get_generation(path: Path) -> int:
    """Returns the generation of an object, which changes with every write; 0 if there is none."""
    blob = find_blob(path)
    found = blob.bucket.get_blob(blob.name)
    return found.generation if found else 0


@contextmanager
def report_bucket_errors(prefix: str) -> Iterator[None]:
    """Turns errors of a bucket in the block into UserErrors of one line.

    Args:
      prefix: beginning of the messages: the flag and the path.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        status = getattr(error, 'code', None)
        meaning = _STATUS.get(status) if isinstance(status, int) else None
        if type(error).__name__ == 'DefaultCredentialsError':
            meaning = _STATUS[401]
        if meaning is None:
            raise
        raise UserError(f'{prefix}: {meaning}') from None
