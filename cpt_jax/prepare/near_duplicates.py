"""Near duplicates across all sources, by MinHash (Broder 1997) and locality-sensitive hashing.

Two items are candidates if one of the bands of their signatures is equal, and near duplicates if
the share of equal values of their signatures, which estimates the Jaccard similarity of their
windows of three words, is at least the threshold. Of items that are connected by near duplicates,
the first is kept.

With 32 bands of 4 values, two items of similarity s are candidates with a probability of
1 - (1 - s**4)**32: 0.99998 at s = 0.75, 0.87 at 0.5, and 0.05 at 0.2. Of two documents that differ
in 5 % of their words, 86 % of the windows are equal, so that their similarity is about 0.75.
"""

from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np

from cpt_jax.prepare.keyed_items import (
    KEY,
    PLACE,
    load_equal_keys,
    save_places,
    save_sorted_keys,
)
from cpt_jax.prepare.words import hash_words, iterate_windows
from cpt_jax.prepare.work_folder import WorkFolder, save_array

BAND_KEYS = 'bands'
SIGNATURES = 'signatures'
LINKS = 'links'
NEAR = 'near'
WINDOW = 3
BANDS = 32
ROWS = 4
SEED = 1
# Signatures of fewer windows say little. Texts below it are only compared for equality.
MIN_WINDOWS = 16
_SIGNATURES_AT_ONCE = 1024
_LINKS_AT_ONCE = 1 << 19  # whose signatures take 134 MB
_MULTIPLIERS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 1], np.uint64)


def compute_signature(text: str) -> np.ndarray | None:
    """Returns uint32[BANDS * ROWS], the MinHash signature of a text; None if it is too short."""
    import rensa

    words_N = hash_words(text)
    if len(words_N) < MIN_WINDOWS + WINDOW - 1:
        return None
    *_, (_, windows) = iterate_windows(words_N, WINDOW)
    distinct = np.unique(windows)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        distinct, np.array([0, len(distinct)], np.uint64), BANDS * ROWS, SEED
    )
    return np.array(matrix.to_rows()[0], np.uint32)


class SignatureStore:
    """The signatures of a task's items, and the keys of their bands.

    An item takes 400 bytes here, and 1,700 while the keys are sorted (measured).
    """

    def __init__(self) -> None:
        # A task may have millions of short items, so these are no lists of objects.
        self._items = array('I')
        self._waiting: list[np.ndarray] = []
        self._keys = bytearray()
        self._signatures = bytearray()

    def add(self, item: int, signature: np.ndarray) -> None:
        """Adds the signature of an item; items are ascending."""
        self._items.append(item)
        self._waiting.append(signature)
        if len(self._waiting) == _SIGNATURES_AT_ONCE:
            self._compute_keys()

    def _compute_keys(self) -> None:
        signatures_KxP = np.array(self._waiting, np.uint32).reshape(-1, BANDS * ROWS)
        self._waiting = []
        self._keys += compute_band_keys(signatures_KxP).tobytes()
        # 8 bits of each value: two different values agree in them once in 256 times.
        self._signatures += signatures_KxP.astype(np.uint8).tobytes()

    def save(self, folder: WorkFolder, rank: int, partitions: int) -> None:
        """Stores signatures and keys.

        Args:
          folder: work folder.
          rank: index of the task.
          partitions: number of ranges into which keys are divided.
        """
        self._compute_keys()
        items_K = np.array(self._items, np.uint32)
        signatures_KxP = np.frombuffer(self._signatures, np.uint8).reshape(-1, BANDS * ROWS)
        save_array(folder.get_path(SIGNATURES, rank, '-items.npy'), items_K)
        save_array(folder.get_path(SIGNATURES, rank, '.npy'), signatures_KxP)
        keys = np.frombuffer(self._keys, np.uint64)  # of items, and of bands inside of an item
        order = np.argsort(keys, kind='stable')
        rows = np.zeros(len(keys), KEY)
        rows['high'] = keys[order]
        rows['low'] = order % BANDS
        rows['item'] = items_K[order // BANDS]
        save_sorted_keys(folder, BAND_KEYS, rank, rows, partitions)


def compute_band_keys(signatures_KxP: np.ndarray) -> np.ndarray:
    """Returns uint64[K, BANDS]: a hash of the values of each band.

    Args:
      signatures_KxP: uint32, signatures.
    """
    values = signatures_KxP.reshape(-1, BANDS, ROWS).astype(np.uint64)
    keys_KxB = (values * _MULTIPLIERS).sum(-1, dtype=np.uint64)
    return (keys_KxB ^ (keys_KxB >> np.uint64(29))) * _MULTIPLIERS[0]


def find_links(folder: WorkFolder, partition: int, tasks: int, threshold: float) -> None:
    """Stores pairs of near duplicates: each item with an equal band, and the first such item.

    Args:
      folder: work folder.
      partition: index of the partition of the keys.
      tasks: number of tasks.
      threshold: minimum similarity.
    """
    found = load_equal_keys(folder, BAND_KEYS, partition, tasks)
    others_N = np.flatnonzero(found.firsts_N != np.arange(len(found.firsts_N)))
    places_N = pack_places(found.places_N)
    links = np.stack([places_N[found.firsts_N[others_N]], places_N[others_N]], -1)
    del found, places_N
    links = select_distinct(links)
    blocks = range(0, len(links), _LINKS_AT_ONCE)
    similarities = [
        _estimate_similarity(folder, links[start : start + _LINKS_AT_ONCE]) for start in blocks
    ]
    similar = np.concatenate([np.zeros(0), *similarities]) >= threshold
    save_array(folder.get_path(LINKS, partition, '.npy'), links[similar])


def _estimate_similarity(folder: WorkFolder, links_Lx2: np.ndarray) -> np.ndarray:
    """Returns float64[L]: the estimated similarity of each pair of packed places."""
    places = unpack_places(links_Lx2)
    signatures = np.zeros((*links_Lx2.shape, BANDS * ROWS), np.uint8)
    for task in np.unique(places['task']).tolist():
        own = places['task'] == task
        items = np.load(folder.get_path(SIGNATURES, task, '-items.npy'), mmap_mode='r')
        stored: Any = np.load(folder.get_path(SIGNATURES, task, '.npy'), mmap_mode='r')
        signatures[own] = stored[np.searchsorted(items, places['item'][own])]
    equal_L = (signatures[:, 0] == signatures[:, 1]).mean(-1)
    return (equal_L - 1 / 256) / (1 - 1 / 256)


def cluster(folder: WorkFolder, partitions: int, tasks: int) -> None:
    """Stores the items to drop: of all items that links connect, all but the first.

    This takes about 120 bytes of memory for each distinct link.

    Args:
      folder: work folder.
      partitions: number of partitions of the keys.
      tasks: number of tasks.
    """
    paths = [folder.get_path(LINKS, part, '.npy') for part in range(partitions)]
    links_Lx2 = merge_links(np.load(path) for path in paths)
    places = np.unique(links_Lx2)
    # Their order is that of tasks and items, so that the smallest index is the first item.
    indices_Lx2 = np.searchsorted(places, links_Lx2).astype(np.uint32)
    del links_Lx2
    dropped = find_roots(len(places), indices_Lx2) != np.arange(len(places))
    save_places(folder, NEAR, 0, unpack_places(places[dropped]), tasks)


def pack_places(places: np.ndarray) -> np.ndarray:
    """Returns PLACE as uint64, in the same order; they are compared faster."""
    return (places['task'].astype(np.uint64) << np.uint64(32)) | places['item']


def unpack_places(packed: np.ndarray) -> np.ndarray:
    """Returns the PLACE that `pack_places` packed."""
    places = np.zeros(packed.shape, PLACE)
    places['task'] = packed >> np.uint64(32)
    places['item'] = packed & np.uint64(0xFFFFFFFF)
    return places


def select_distinct(links_Lx2: np.ndarray) -> np.ndarray:
    """Returns the distinct rows of uint64[L, 2], sorted."""
    links_Lx2 = links_Lx2[np.lexsort((links_Lx2[:, 1], links_Lx2[:, 0]))]
    is_new_L = np.ones(len(links_Lx2), bool)
    is_new_L[1:] = (links_Lx2[1:] != links_Lx2[:-1]).any(-1)
    return links_Lx2[is_new_L]


def merge_links(parts: Iterable[np.ndarray]) -> np.ndarray:
    """Returns the distinct links of all partitions. Two items are linked in up to 32 bands.

    Args:
      parts: uint64[n, 2] of each partition. They are merged when they are as many as the distinct
        links before them, so that memory is bounded by twice the result and each is sorted a few
        times.
    """
    merged: np.ndarray = np.zeros((0, 2), np.uint64)
    waiting: list[np.ndarray] = []
    number = 0
    for part in parts:
        waiting.append(part)
        number += len(part)
        if number > max(len(merged), _LINKS_AT_ONCE):
            merged = select_distinct(np.concatenate([merged, *waiting]))
            waiting = []
            number = 0
    return select_distinct(np.concatenate([merged, *waiting]))


def find_roots(size: int, links_Lx2: np.ndarray) -> np.ndarray:
    """Returns int64[size]: the smallest index that links connect with each index.

    In each round, roots that a link connects with a smaller root are attached to the smallest of
    these, and all paths are shortened to one step, as in parallel union-find. Links inside of a
    tree are left out of the next round.

    Args:
      size: number of indices.
      links_Lx2: integers, pairs of indices.
    """
    roots = np.arange(size)
    while len(links_Lx2):
        ends_Lx2 = roots[links_Lx2]
        np.minimum.at(roots, ends_Lx2.max(-1), ends_Lx2.min(-1))
        while not np.array_equal(shorter := roots[roots], roots):
            roots = shorter
        ends_Lx2 = roots[links_Lx2]
        links_Lx2 = links_Lx2[ends_Lx2[:, 0] != ends_Lx2[:, 1]]
    return roots
