"""Results that take a while to compute, kept on disk between programs."""

import json
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cpt_jax.storage.atomic_write import replacing

Arrays = dict[str, np.ndarray]


def cache_folder() -> Path:
    """The folder of the environment variable CPT_JAX_CACHE, or ~/.cache/cpt_jax."""
    return Path(os.environ.get('CPT_JAX_CACHE') or Path.home() / '.cache' / 'cpt_jax')


def cached(name: str, build: Callable[[], Arrays]) -> Arrays:
    """The arrays that `build` returns, from the file `<cache folder>/<name>.npz` if an earlier call
    wrote it.

    `name` must hold a digest of all that the arrays depend on. A file that cannot be read is built
    again; a folder that cannot be written costs a warning, not the run. Two programs that build at
    once both write, and either file is whole.
    """
    path = cache_folder() / f'{name}.npz'
    try:
        with np.load(path) as saved:
            return {key: saved[key] for key in saved.files}
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        logging.warning('%s cannot be read (%s) and is built again', path, error)
    arrays = build()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        logging.warning('%s cannot be written (%s): the next program builds it again', path, error)
    return arrays


def to_array(value: object) -> np.ndarray:
    """What JSON can say, as uint8[bytes]: for the small things that go into a cache file beside its
    arrays.
    """
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def from_array(array: np.ndarray) -> Any:
    """The value that `to_array` was given."""
    return json.loads(array.tobytes())
