"""Keys of the items of all tasks, compared in partitions.

Each task stores the keys of its items, sorted. A task of the next stage reads one range of keys of
all of them, so that no process holds the keys of the whole corpus.
"""

from typing import NamedTuple

import numpy as np

from cpt_jax.prepare.work_folder import WorkFolder, load_part, save_parts

KEY = np.dtype([('high', '<u8'), ('low', '<u8'), ('item', '<u4')])
PLACE = np.dtype([('task', '<u4'), ('item', '<u4')])


class EqualKeys(NamedTuple):
    """Items of all tasks, sorted by key, and then by task and item.

    Attributes:
      places_N: PLACE, the items.
      firsts_N: int64, index of the first item with the same key as each.
    """

    places_N: np.ndarray
    firsts_N: np.ndarray


def save_keys(folder: WorkFolder, stage: str, rank: int, rows: np.ndarray, partitions: int) -> None:
    """Stores the keys of a task's items.

    Args:
      folder: work folder.
      stage: name of the files.
      rank: index of the task.
      rows: KEY [n].
      partitions: number of ranges into which keys are divided.
    """
    rows = rows[np.lexsort((rows['item'], rows['low'], rows['high']))]
    save_sorted_keys(folder, stage, rank, rows, partitions)


def save_sorted_keys(
    folder: WorkFolder, stage: str, rank: int, rows: np.ndarray, partitions: int
) -> None:
    """Stores the keys of a task's items, which are sorted by `high`; see `save_keys`."""
    # Partition p has the keys from p / partitions to (p + 1) / partitions of the range of uint64.
    limits = [(p << 64) // partitions for p in range(1, partitions)]
    bounds = np.searchsorted(rows['high'], np.array(limits, np.uint64))
    save_parts(folder.get_path(stage, rank, '.npy'), rows, np.array([0, *bounds, len(rows)]))


def load_equal_keys(folder: WorkFolder, stage: str, partition: int, tasks: int) -> EqualKeys:
    """Returns the items of a partition of the keys.

    Args:
      folder: work folder.
      stage: name of the files.
      partition: index of the partition.
      tasks: number of tasks.
    """
    parts = [load_part(folder.get_path(stage, task, '.npy'), partition) for task in range(tasks)]
    keys_N = np.concatenate(parts)
    tasks_N = np.repeat(np.arange(tasks, dtype=np.uint32), [len(part) for part in parts])
    order_N = np.lexsort((keys_N['item'], tasks_N, keys_N['low'], keys_N['high']))
    keys_N = keys_N[order_N]
    places_N = np.zeros(len(keys_N), PLACE)
    places_N['task'] = tasks_N[order_N]
    places_N['item'] = keys_N['item']
    is_first_N = np.ones(len(keys_N), bool)
    is_first_N[1:] = (keys_N['high'][1:] != keys_N['high'][:-1]) | (
        keys_N['low'][1:] != keys_N['low'][:-1]
    )
    firsts_N = np.maximum.accumulate(np.where(is_first_N, np.arange(len(keys_N)), 0))
    return EqualKeys(places_N, firsts_N)


def save_places(folder: WorkFolder, stage: str, rank: int, places: np.ndarray, tasks: int) -> None:
    """Stores items so that each task finds its own.

    Args:
      folder: work folder.
      stage: name of the files.
      rank: index of the task that stores them.
      places: PLACE [n].
      tasks: number of tasks.
    """
    places = np.sort(places, order=('task', 'item'))
    bounds = np.searchsorted(places['task'], np.arange(tasks + 1))
    save_parts(folder.get_path(stage, rank, '.npy'), places, bounds)


def load_items(folder: WorkFolder, stage: str, task: int, ranks: int) -> np.ndarray:
    """Returns uint32[n]: the items of a task that all `ranks` of a stage have stored."""
    parts = [load_part(folder.get_path(stage, rank, '.npy'), task)['item'] for rank in range(ranks)]
    return np.concatenate(parts)
