"""Exact duplicates across all sources: items with the same words."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from cpt_jax.data.equality import normalize_text
from cpt_jax.prepare.keyed_items import KEY, load_equal_keys, save_keys, save_places
from cpt_jax.prepare.work_folder import WorkFolder

KEYS = 'keys'
REPEATED = 'repeated'


def compute_key(text: str) -> bytes:
    """Returns 16 bytes that are equal for texts with the same words (data/equality.py)."""
    return blake2b(normalize_text(text).encode('utf-8', 'replace'), digest_size=16).digest()


def save_content_keys(
    folder: WorkFolder, rank: int, keys: bytes | bytearray, items: Sequence[int], partitions: int
) -> None:
    """Stores the keys of a task's items for the next stage.

    Args:
      folder: work folder.
      rank: index of the task.
      keys: results of `compute_key`, joined.
      items: index of each key's item in the task.
      partitions: number of ranges into which keys are divided.
    """
    values = np.frombuffer(keys, '>u8').reshape(-1, 2)
    rows = np.zeros(len(values), KEY)
    rows['high'] = values[:, 0]
    rows['low'] = values[:, 1]
    rows['item'] = items
    save_keys(folder, KEYS, rank, rows, partitions)


def find_repeated(folder: WorkFolder, partition: int, tasks: int) -> None:
    """Stores which items of all tasks repeat an earlier item, for one partition of the keys.

    Args:
      folder: work folder.
      partition: index of the partition.
      tasks: number of tasks.
    """
    found = load_equal_keys(folder, KEYS, partition, tasks)
    repeats_N = found.firsts_N != np.arange(len(found.firsts_N))
    save_places(folder, REPEATED, partition, found.places_N[repeats_N], tasks)
