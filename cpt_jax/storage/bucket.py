"""Objects of Google Cloud Storage."""

from functools import cache
from pathlib import Path
from typing import Any


@cache
def _make_client() -> Any:
    from google.cloud import storage

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
