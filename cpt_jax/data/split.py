"""Selects the rows of a source that belong to a split."""

import numpy as np

from cpt_jax.runtime.errors import UserError

SPLITS = ('train', 'heldout', 'all')


def select_rows(split: str, heldout: np.ndarray, source: str, holdout: float) -> np.ndarray:
    """Returns int64[n]: the indices of the rows of a split.

    Args:
      split: 'train', 'heldout' or 'all'.
      heldout: bool[rows], whether each row is held out.
      source: name of the source, for the message.
      holdout: fraction of held-out rows, from the config.

    Raises:
      UserError: the split is empty, unless it is 'heldout' and `holdout` is 0.
    """
    rows = np.flatnonzero(make_split_mask(split, heldout))
    check_split_size(len(rows), split, source, holdout)
    return rows


def make_split_mask(split: str, heldout: np.ndarray) -> np.ndarray:
    """Returns bool[rows], whether each row belongs to a split.

    Args:
      split: 'train', 'heldout' or 'all'.
      heldout: bool[rows], whether each row is held out.
    """
    if split not in SPLITS:
        raise ValueError(f'split is {split!r} and must be one of {SPLITS}')
    masks = {'train': ~heldout, 'heldout': heldout, 'all': np.ones_like(heldout)}
    return masks[split]


def check_split_size(size: int, split: str, source: str, holdout: float) -> None:
    """Raises UserError if a split is empty, unless it is 'heldout' and `holdout` is 0.

    Args:
      size: number of rows of the split.
      split: 'train', 'heldout' or 'all'.
      source: name of the source, for the message.
      holdout: fraction of held-out rows, from the config.
    """
    if not 0 <= holdout <= 1:
        raise UserError(f'holdout={holdout:g}: must be a fraction from 0 to 1')
    if size or (split == 'heldout' and not holdout):
        return
    raise UserError(
        f'no pairs in {source} for split {split!r} with holdout={holdout:g}: add input or change '
        f'holdout'
    )
