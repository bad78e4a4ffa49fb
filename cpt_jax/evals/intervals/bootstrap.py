"""Bootstrap distributions of means and correlations, for many resamples at once.

A resample draws N of N items with replacement. It is represented by the number of times that each
item was drawn, so an item is never copied.
"""

from collections.abc import Callable, Iterator

import numpy as np

DRAWS = 2_000
LEVEL = 0.95
SEED = 0
# Items of all resamples that are in memory at once; 8 MiB arrays stay in the caches of a CPU.
_ITEMS_AT_ONCE = 1 << 20

DESCRIPTION = f'{LEVEL:.0%} bootstrap percentile intervals, {DRAWS:,} draws, seed {SEED}'


def draw_means(values_NxM: np.ndarray, draws: int = DRAWS, seed: int = SEED) -> np.ndarray:
    """Returns float64 [draws, M]: the mean of each column over every resample of the rows."""

    def compute(counts_BxN: np.ndarray) -> np.ndarray:
        return counts_BxN @ values_NxM / len(values_NxM)

    return _compute_draws(compute, len(values_NxM), draws, seed)


def draw_correlations(
    x_N: np.ndarray, y_N: np.ndarray, draws: int = DRAWS, seed: int = SEED
) -> np.ndarray:
    """Returns float64 [draws, 2]: Spearman and Pearson of every resample of the pairs.

    A correlation is 0 if all values of a side are equal.
    """
    x_N, y_N = (side_N.astype(np.float64) - side_N.mean(dtype=np.float64) for side_N in (x_N, y_N))
    rank_x, rank_y = _make_ranker(x_N), _make_ranker(y_N)

    def compute(counts_BxN: np.ndarray) -> np.ndarray:
        ranked = _correlate(counts_BxN, rank_x(counts_BxN), rank_y(counts_BxN))
        return np.stack([ranked, _correlate(counts_BxN, x_N, y_N)], axis=1)

    return _compute_draws(compute, len(x_N), draws, seed)


def compute_interval(draws_D: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Returns the lower and the upper bound of the percentile interval of a distribution."""
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(draws_D, [tail, 100 - tail])
    return float(low), float(high)


def _compute_draws(
    compute: Callable[[np.ndarray], np.ndarray], items: int, draws: int, seed: int
) -> np.ndarray:
    """Returns `compute` of all resamples; it gets the counts float64 [B, N] of some at a time."""
    return np.concatenate([compute(counts_BxN) for counts_BxN in _iterate(items, draws, seed)])


def _iterate(items: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Yields float64 [B, N]: how often each item is in a resample, until there are `draws` rows.

    They depend only on the arguments. Scores of the same items are therefore resampled alike, so
    that differences of two models are paired.
    """
    generator = np.random.default_rng(seed)
    rows = max(1, _ITEMS_AT_ONCE // items)
    for start in range(0, draws, rows):
        count = min(rows, draws - start)
        drawn_BxN = generator.integers(0, items, (count, items))
        drawn_BxN += np.arange(count)[:, None] * items
        counts = np.bincount(drawn_BxN.ravel(), minlength=count * items)
        yield counts.reshape(count, items).astype(np.float64)


def _make_ranker(values_N: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from counts [B, N] to the rank of every item in each resample, [B, N].

    Equal values share the mean of their ranks. The values are sorted only once: if the items before
    item i, in sorted order, were drawn c times, its copies have the ranks from c + 1 on.
    """
    order_N = np.argsort(values_N, kind='stable')
    sorted_N = values_N[order_N]
    # K groups of equal values; group k ends before sorted item ends_K[k].
    ends_K = np.append(np.flatnonzero(np.diff(sorted_N)) + 1, len(sorted_N))
    group_N = np.empty(len(order_N), np.int64)
    group_N[order_N] = np.repeat(np.arange(len(ends_K)), np.diff(ends_K, prepend=0))

    def rank(counts_BxN: np.ndarray) -> np.ndarray:
        drawn_BxK = np.cumsum(counts_BxN[:, order_N], axis=1)[:, ends_K - 1]
        before_BxK = np.concatenate([np.zeros((len(drawn_BxK), 1)), drawn_BxK[:, :-1]], axis=1)
        return ((before_BxK + drawn_BxK + 1) / 2)[:, group_N]

    return rank


def _correlate(counts_BxN: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns Pearson's correlation of every resample, float64 [B].

    Args:
      counts_BxN: how often each item is in a resample.
      x, y: values [N], or values in each resample [B, N].
    """
    items = counts_BxN.shape[1]

    def sum_items(values: np.ndarray) -> np.ndarray:
        return np.einsum('bn,bn->b', counts_BxN, np.broadcast_to(values, counts_BxN.shape))

    def center(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the values minus their mean, and the sum of squares; 0 for rounding errors."""
        centered_BxN = values - (sum_items(values) / items)[:, None]
        squares_B = sum_items(centered_BxN * centered_BxN)
        smallest = np.finfo(np.float64).eps * items * np.max(np.square(values))
        return centered_BxN, np.where(squares_B > smallest, squares_B, 0)

    x_BxN, squares_x_B = center(x)
    y_BxN, squares_y_B = center(y)
    products_B = sum_items(x_BxN * y_BxN)
    scale_B = np.sqrt(squares_x_B * squares_y_B)
    return np.divide(products_B, scale_B, out=np.zeros_like(scale_B), where=scale_B > 0)
