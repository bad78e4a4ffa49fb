"""Exact duplicates across all sources: keys of the items, compared in partitions.

Each task stores the keys of its items, sorted. A task of the next stage reads one range of keys of
all of them, so that no process holds the keys of the whole corpus.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from cpt_jax.data.equality import normalize_text
from cpt_jax.prepare.work_folder import WorkFolder, load_part, save_parts

KEY = np.dtype([('high', '<u8'), ('low', '<u8'), ('item', '<u4')])
REPEATED = np.dtype([('task', '<u4'), ('item', '<u4')])


def compute_key(text: str) -> bytes:
    """Returns 16 bytes that are equal for texts with the same words (data/equality.py)."""
    return blake2b(normalize_text(text).encode('utf-8', 'replace'), digest_size=16).digest()


def save_keys(
    folder: WorkFolder, rank: int, keys: Sequence[bytes], items: Sequence[int], partitions: int
) -> None:
    """Stores the keys of a task's items for the next stage.

    Args:
      folder: work folder.
      rank: index of the task.
      keys: results of `compute_key`.
      items: index of each key's item in the task.
      partitions: number of ranges into which keys are divided.
    """
    rows = np.zeros(len(keys), KEY)
    values = np.frombuffer(b''.join(keys), '>u8').reshape(-1, 2)
    rows['high'] = values[:, 0]
    rows['low'] = values[:, 1]
    rows['item'] = items
    rows = rows[np.lexsort((rows['item'], rows['low'], rows['high']))]
    # Partition p has the keys from p / partitions to (p + 1) / partitions of the range of uint64.
    limits = [(p << 64) // partitions for p in range(1, partitions)]
    bounds = np.searchsorted(rows['high'], np.array(limits, np.uint64))
    save_parts(
        folder.get_path('keys', rank, '.npy'), rows, np.array([0, *bounds, len(rows)], np.int64)
    )


def find_repeated(folder: WorkFolder, partition: int, tasks: int) -> None:
    """Stores which items of all tasks repeat an earlier item, for one partition of the keys.

    Args:
      folder: work folder.
      partition: index of the partition.
      tasks: number of tasks.
    """
    parts = [load_part(folder.get_path('keys', task, '.npy'), partition) for task in range(tasks)]
    keys_N = np.concatenate(parts)
    tasks_N = np.repeat(np.arange(tasks, dtype=np.uint32), [len(part) for part in parts])
    # Within equal keys, the items of earlier tasks come first.
    order_N = np.lexsort((keys_N['item'], tasks_N, keys_N['low'], keys_N['high']))
    keys_N = keys_N[order_N]
    tasks_N = tasks_N[order_N]
    repeats_N = np.zeros(len(keys_N), bool)
    repeats_N[1:] = (keys_N['high'][1:] == keys_N['high'][:-1]) & (
        keys_N['low'][1:] == keys_N['low'][:-1]
    )
    rows = np.zeros(repeats_N.sum(), REPEATED)
    rows['task'] = tasks_N[repeats_N]
    rows['item'] = keys_N['item'][repeats_N]
    rows.sort(order=('task', 'item'))
    bounds = np.searchsorted(rows['task'], np.arange(tasks + 1))
    save_parts(folder.get_path('repeated', partition, '.npy'), rows, bounds)


def load_repeated(folder: WorkFolder, task: int, partitions: int) -> np.ndarray:
    """Returns uint32[n]: the indices of a task's items that repeat an earlier item."""
    parts = [
        load_part(folder.get_path('repeated', partition, '.npy'), task)['item']
        for partition in range(partitions)
    ]
    return np.concatenate(parts)
