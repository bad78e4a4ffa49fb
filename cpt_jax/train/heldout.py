"""A cheap look at retrieval while a run trains: held-out pairs, each y among all of them."""

from collections.abc import Callable, Sequence

import numpy as np

from cpt_jax.data.pairs import Pair
from cpt_jax.embed import Embedder


def heldout_scores(embed: Embedder, pairs: Sequence[Pair], between: Callable[[], None]) -> dict[str, float]:
    """How well x finds its y among the y's of all pairs: mean reciprocal rank, and the share found first. Ties count against.

    `between` is called after each batch of texts, and may raise to end it.
    """
    x_PxD, y_PxD = (embed(texts, side, between=between) for texts, side in [([p.x for p in pairs], 'x'), ([p.y for p in pairs], 'y')])
    scores_PxP = x_PxD @ y_PxD.T
    rank_P = np.sum(scores_PxP >= np.diagonal(scores_PxP)[:, None], axis=1)
    return {'heldout_mrr': float(np.mean(1 / rank_P)), 'heldout_first': float(np.mean(rank_P == 1)), 'heldout_pairs': len(pairs)}
