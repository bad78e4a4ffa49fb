"""A cache on disk for arrays that are slow to compute."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.atomic_write import open_atomically
from cpt_jax.storage.mounts import is_on_slow_mount

Arrays = dict[str, np.ndarray]


def get_cache_folder() -> Path:
    """Returns $CPT_JAX_CACHE, or ~/.cache/cpt_jax if that is not set.

    Raises:
      UserError: the home directory is needed and unknown: there is neither $HOME nor an entry of
        the user in the list of users, as in some containers.
    """
    folder = os.environ.get('CPT_JAX_CACHE') or '~/.cache/cpt_jax'
    try:
        return Path(folder).expanduser()
    except RuntimeError:
        raise UserError(
            f'the cache folder {folder}: the home directory of this user is unknown: set '
            f'CPT_JAX_CACHE to a folder that can be written'
        ) from None


def get_free_bytes(folder: Path) -> int:
    """Returns the free bytes of the disk on which a folder is or would be created."""
    while not folder.is_dir():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def is_slower_than_cache(path: Path) -> bool:
    """Returns whether a path is on a network or FUSE file system and the cache is not."""
    return is_on_slow_mount(path) and not is_on_slow_mount(get_cache_folder())


def fits_into_cache(size: int, what: str) -> bool:
    """Returns whether a copy of files on a slow mount fits on the disk of the cache; warns if not.

    Args:
      size: bytes of the files.
      what: name of the files, for the warning.
    """
    folder = get_cache_folder()
    free = get_free_bytes(folder)
    if size < free:
        return True
    logging.warning(
        '%s: read over the network at each access, because %.1f GB do not fit into the cache (%s, '
        '%.1f GB are free): set CPT_JAX_CACHE to a folder on a larger disk',
        what,
        size / 1e9,
        folder,
        free / 1e9,
    )
    return False


def load_or_build(name: str, build: Callable[[], Arrays], required: Sequence[str] = ()) -> Arrays:
    """Returns the arrays in the cache, or calls `build` and stores the arrays it returns.

    If the file is damaged, it is built again. If the folder cannot be written, a warning is
    printed. If two programs build at the same time, both write the whole file.

    Args:
      name: the file is `<cache folder>/<name>.npz`. The name must contain a digest of everything
        that the arrays depend on.
      build: function that computes the arrays; it returns them by name.
      required: names of arrays without which a file is built again.
    """
    path = get_cache_folder() / f'{name}.npz'
    saved = read_arrays(path)
    if saved is not None:
        lost = [key for key in required if key not in saved]
        if not lost:
            return saved
        logging.warning('%s has no %s: building it again', path, lost[0])
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


def read_arrays(path: Path) -> Arrays | None:
    """Returns the arrays of a .npz file; None if it is missing or, with a warning, damaged.

    numpy compares the CRC-32 of each array.
    """
    try:
        with np.load(path) as saved:
            return {key: saved[key] for key in saved.files}
    except (FileNotFoundError, NotADirectoryError):
        return None
    # A wrong bit in a header can raise almost anything: RuntimeError for an "encrypted" file,
    # zlib.error for a "compressed" one, MemoryError for its "shape".
    except Exception as error:
        logging.warning('%s cannot be read (%s): building it again', path, error)
        return None


def json_to_array(value: object) -> np.ndarray:
    """Returns a value as JSON in uint8[bytes].

    It is used for counts and names that a cache file stores in addition to its arrays.
    """
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def array_to_json(array: np.ndarray) -> Any:
    """Returns the value that `json_to_array` encoded."""
    return json.loads(array.tobytes())
