"""Which rows of a source belong to a split."""

import numpy as np

from cpt_jax.runtime.errors import UserError

SPLITS = ('train', 'heldout', 'all')


def rows_of(split: str, heldout: np.ndarray, source: str, holdout: float) -> np.ndarray:
    """The numbers, int64[n], of the rows of a split; `heldout` is bool[rows].

    Raises UserError if there are none; but to hold out nothing where `holdout` is 0 is no mistake.
    """
    if split not in SPLITS:
        raise ValueError(f'split is {split!r} and must be one of {SPLITS}')
    if not 0 <= holdout <= 1:
        raise UserError(f'holdout={holdout:g}: must be a share from 0 to 1')
    rows = np.flatnonzero(
        {'train': ~heldout, 'heldout': heldout, 'all': np.ones_like(heldout)}[split]
    )
    if len(rows) or (split == 'heldout' and not holdout):
        return rows
    raise UserError(
        f'no pairs in {source} for split {split!r} with holdout={holdout:g}: give more input or '
        f'another holdout'
    )
