"""The positives of an x in other pairs of its source, which are no negatives of that x.

They are found once, when a source is opened, from an id of each text that its index holds. They
matter where the same y occurs in several pairs, or as a hard negative. Pairs with equal x need no
list in a batch that holds them: their masks come from x itself (loss/candidates.py).

The sources `python_source` and `text` have no index of such ids. The first holds each function
once and has no hard negatives, so a positive of x is in a batch only with a pair of equal x. In the
second, x and y are neighbouring pieces of a document, and each document is held once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cpt_jax.data.equality import normalize_text
from cpt_jax.data.pairs import compute_content_id

# Maximum number of other positives of an x that are compared. Each costs one comparison of every x
# of a batch with every y.
MAX_OTHER_POSITIVES = 8


def compute_word_id(text: str) -> int:
    """Returns an id, 1 to 2**31 - 1, of a text's words, whatever the tokenizer."""
    return compute_content_id(normalize_text(text))


class OtherPositives(NamedTuple):
    """The ids of the y's that belong to x's with several y's.

    They take at most 20 bytes for each pair whose x has several y's, and nothing for other pairs.

    Attributes:
      pairs: int64[n], ascending indices of the pairs whose x has several y's.
      groups: int32[n], group of each of these pairs: pairs with equal x.
      starts: int64[groups + 1], where the ids of each group begin.
      ids: int32[m], word ids of the distinct y's of each group.
    """

    pairs: np.ndarray
    groups: np.ndarray
    starts: np.ndarray
    ids: np.ndarray

    @property
    def most(self) -> int:
        """Largest number of other positives of a pair, at most MAX_OTHER_POSITIVES."""
        return min(int(np.diff(self.starts).max(initial=1)) - 1, MAX_OTHER_POSITIVES)

    def find(self, pair: int) -> tuple[int, ...]:
        """Returns the word ids of all distinct y's of a pair's x; () if it has one y."""
        position = int(np.searchsorted(self.pairs, pair))
        if position == len(self.pairs) or self.pairs[position] != pair:
            return ()
        group = self.groups[position]
        return tuple(self.ids[self.starts[group] : self.starts[group + 1]].tolist())


def find_other_positives(x_N: np.ndarray, y_N: np.ndarray) -> OtherPositives:
    """Returns the positives that are in other pairs.

    Args:
      x_N, y_N: int32 word ids of x and y of each pair, 1 or more.
    """
    # Pairs sorted by x, then y. A group is a run of equal x.
    #
    #   x         1 1 1 | 2 | 3 3 | 4 4        groups 1 and 4 have several y's: 5 6 and 5 8
    #   y         5 5 6 | 7 | 7 7 | 5 8
    #   is_new    * . *   *   * .   * *
    order_N = np.lexsort((y_N, x_N))
    x_N, y_N = x_N[order_N], y_N[order_N]
    begins_N = np.diff(x_N, prepend=0) != 0
    is_new_N = begins_N | (np.diff(y_N, prepend=0) != 0)
    group_N = np.cumsum(begins_N) - 1
    has_several = np.bincount(group_N[is_new_N]) > 1
    kept_N = has_several[group_N] if len(x_N) else begins_N
    group_n = (np.cumsum(has_several) - 1)[group_N[kept_N]]
    counts = np.bincount(group_n[is_new_N[kept_N]])
    pairs_n = order_N[kept_N]
    ascending_n = np.argsort(pairs_n)
    return OtherPositives(
        pairs_n[ascending_n],
        group_n[ascending_n].astype(np.int32),
        np.append(0, np.cumsum(counts)),
        y_N[kept_N & is_new_N],
    )


NO_OTHER_POSITIVES = find_other_positives(np.zeros(0, np.int32), np.zeros(0, np.int32))


def make_positive_ids(texts: Sequence[str], positives: Sequence[int], most: int) -> np.ndarray:
    """Returns int32[1 + texts, most]: ids by which x is compared with y's and hard negatives.

    Those of x are its positives in other pairs, followed by 0. Those of the other texts are their
    own word id, in every column.

    Args:
      texts: y and hard negatives, without prompts.
      positives: word ids of all y's of x.
      most: maximum number of positives.
    """
    own = [compute_word_id(text) for text in texts]
    others = [positive for positive in positives if positive != own[0]][:most]
    ids = np.repeat(np.array([0, *own], np.int32)[:, None], most, axis=1)
    ids[0, : len(others)] = others
    return ids
