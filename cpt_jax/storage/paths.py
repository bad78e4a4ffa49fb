"""Paths of the file system and of buckets (gs://...)."""

import logging
import os
import re
from pathlib import Path
from typing import cast

from etils import epath

from cpt_jax.runtime.errors import UserError

_URL = re.compile(r'([a-zA-Z][a-zA-Z0-9+.-]+):/')  # one slash, because Path turns gs:// into gs:/
_BUCKET = 'gs://'


def is_remote(path: str | os.PathLike) -> bool:
    """Returns whether a path is a URL, such as gs://bucket/folder, and does not exist locally."""
    return _URL.match(os.fspath(path)) is not None and not os.path.exists(path)


def normalize_url(url: str) -> str:
    """Returns a URL with both slashes."""
    return _URL.sub(r'\1://', url.replace('://', ':/'), count=1)


def is_on_bucket(path: str | os.PathLike) -> bool:
    """Returns whether a path is one of a bucket (gs://...), where outputs can be written."""
    return os.fspath(path).startswith(_BUCKET)


def make_path(path: str | Path, name: str) -> Path:
    """Returns a path of the file system or of a bucket.

    Args:
      path: the path, as the user gave it.
      name: flag or argument that the path comes from, for the message.

    Raises:
      UserError: the path is a URL other than gs://.
    """
    return as_path(path) if is_on_bucket(path) else local_path(path, name)


def as_path(path: str | os.PathLike) -> Path:
    """Returns a path of a bucket as an epath.Path, and any other as a pathlib.Path."""
    if not is_on_bucket(path):
        return Path(path)
    configure_gcs()
    # It has the methods of pathlib.Path, except `absolute`, `rglob` and appending to a file.
    return cast(Path, epath.Path(path))


def configure_gcs() -> None:
    """Makes gcsfs list folders as they are, and log nothing about errors that it raises."""
    import fsspec

    # Both log at each attempt of a request; the last error is raised. gcsfs also warns for every
    # path if it may not ask for the bucket's kind, and goes on.
    for name in ('gcsfs', 'google.auth._default'):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # It would go on listing what a folder held when it was first listed.
    fsspec.config.conf.setdefault('gcs', {})['use_listings_cache'] = False


def make_absolute(path: Path) -> Path:
    """Returns the absolute path; a path of a bucket always is."""
    return path if is_on_bucket(path) else path.absolute()


def local_path(path: str | Path, name: str) -> Path:
    """Returns a path of the file system, for files that are renamed or memory-mapped.

    Args:
      path: the path, as the user gave it.
      name: flag or argument that the path comes from, for the message.

    Raises:
      UserError: the path is a URL.
    """
    if _URL.match(str(path)):
        raise UserError(
            f'{name} {path}: only paths of the file system are supported: mount the bucket '
            f'(gcsfuse) and give the mounted path'
        )
    return Path(path)
