"""A cache on disk for arrays that are slow to compute."""

import json
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cpt_jax.storage.atomic_write import open_atomically

Arrays = dict[str, np.ndarray]


def get_cache_folder() -> Path:
    """Returns $CPT_JAX_CACHE, or ~/.cache/cpt_jax if that is not set."""
    return Path(os.environ.get('CPT_JAX_CACHE') or Path.home() / '.cache' / 'cpt_jax')


def load_or_build(name: str, build: Callable[[], Arrays]) -> Arrays:
    """Returns the arrays in the cache, or calls `build` and stores the arrays it returns.

    If the file cannot be read, it is built again. If the folder cannot be written, a warning is
    printed. If two programs build at the same time, both write the file atomically.

    Args:
      name: the file is `<cache folder>/<name>.npz`. The name must contain a digest of everything
        that the arrays depend on.
      build: function that computes the arrays; it returns them by name.
    """
    path = get_cache_folder() / f'{name}.npz'
    try:
        with np.load(path) as saved:
            return {key: saved[key] for key in saved.files}
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        logging.warning('%s cannot be read (%s): building it again', path, error)
    arrays = build()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_atomically(path) as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        logging.warning(
            '%s cannot be written (%s): the next program has to build it again', path, error
        )
    return arrays


def json_to_array(value: object) -> np.ndarray:
    """Returns a value as JSON in uint8[bytes].

    It is used for counts and names that a cache file stores in addition to its arrays.
    """
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def array_to_json(array: np.ndarray) -> Any:
    """Returns the value that `json_to_array` encoded."""
    return json.loads(array.tobytes())
