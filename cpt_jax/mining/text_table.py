"""Distinct texts in a file, which are read by their index."""

import os
from array import array
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cpt_jax.data.equality import NORMALIZED, normalize_text
from cpt_jax.data.pairs import compute_text_key


def compute_merged_key(text: str, equal_texts: str, fold_case: bool = True) -> int:
    """Returns a 64-bit hash that is the same for equal texts.

    It has more bits than a content id (data/pairs.py), because it also merges equal texts: among
    ten million different texts, two have the same 31-bit id twenty thousand times.

    Args:
      text: a text.
      equal_texts: when two texts are equal: one of EQUALITY_RULES (data/equality.py).
      fold_case: whether 'normalized' folds case, as training does if its tokenizer does.
    """
    if equal_texts == NORMALIZED:
        text = normalize_text(text, fold_case)
    return compute_text_key(text)


class TextTable(NamedTuple):
    """Distinct texts, in the order of their first occurrence; about 40 bytes of memory per text.

    Attributes:
      path: file with the texts, one after the other.
      starts_N, ends_N: int64, offsets at which each text begins and ends in the file.
      keys_N: uint64, `compute_merged_key` of each text.
      sorted_N: int64, indices of the texts in order of their keys.
      fingerprint: 32 hex digits, a digest of the texts from which the table was built.
    """

    path: Path
    starts_N: np.ndarray
    ends_N: np.ndarray
    keys_N: np.ndarray
    sorted_N: np.ndarray
    fingerprint: str

    @property
    def size(self) -> int:
        """Number of texts."""
        return len(self.starts_N)

    def read_texts(self, indices: Iterable[int]) -> list[str]:
        """Returns the texts at some indices."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            ranges = [(int(self.starts_N[i]), int(self.ends_N[i])) for i in indices]
            parts = [os.pread(descriptor, end - start, start) for start, end in ranges]
        finally:
            os.close(descriptor)
        return [part.decode('utf-8', 'surrogatepass') for part in parts]

    def find_keys(self, keys_M: np.ndarray) -> np.ndarray:
        """Returns int64[M]: index of the text with each key, -1 where there is none."""
        sorted_keys_N = self.keys_N[self.sorted_N]
        positions_M = np.minimum(np.searchsorted(sorted_keys_N, keys_M), self.size - 1)
        return np.where(sorted_keys_N[positions_M] == keys_M, self.sorted_N[positions_M], -1)


def build_text_table(
    path: Path, texts: Iterable[str], equal_texts: str, fold_case: bool = True
) -> tuple[TextTable, np.ndarray]:
    """Writes texts to a file.

    Args:
      path: the file.
      texts: M texts. Of equal ones, the table has the first; the file has all.
      equal_texts: one of EQUALITY_RULES (data/equality.py).
      fold_case: see `compute_merged_key`.

    Returns:
      The table, and int64[M]: the index in the table of each text.
    """
    keys = array('Q')
    ends = array('q')
    contents = blake2b(digest_size=16)
    end = 0
    with path.open('wb') as file:
        for text in texts:
            data = text.encode('utf-8', 'surrogatepass')
            file.write(data)
            contents.update(b'%d ' % len(data) + data)
            end += len(data)
            keys.append(compute_merged_key(text, equal_texts, fold_case))
            ends.append(end)
    keys_M = np.array(keys, np.uint64)
    ends_M = np.array(ends, np.int64)
    # np.unique sorts by key; `order_N` puts its N distinct keys in order of first occurrence.
    distinct_N, first_N, inverse_M = np.unique(keys_M, return_index=True, return_inverse=True)
    order_N = np.argsort(first_N)
    index_N = np.empty(len(order_N), np.int64)
    index_N[order_N] = np.arange(len(order_N))
    firsts_N = first_N[order_N]
    starts_M = np.append(0, ends_M)[:-1]
    table = TextTable(
        path,
        starts_M[firsts_N],
        ends_M[firsts_N],
        distinct_N[order_N],
        index_N,
        contents.hexdigest(),
    )
    return table, index_N[inverse_M]
