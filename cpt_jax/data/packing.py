"""Packs several texts into each row, so that few columns are padding."""

import numpy as np

from cpt_jax.runtime.errors import UserError


def pack(lengths: np.ndarray, rows: int, row_length: int) -> np.ndarray:
    """Returns int64[n]: the start of each text as row * row_length + column; -1 if it does not fit.

    Best fit decreasing: each text, longest first, goes into the fullest row that has room for it.
    The result depends only on the arguments.

    Args:
      lengths: int[n], number of tokens of each text.
      rows: number of rows.
      row_length: number of columns of a row.
    """
    starts = np.full(len(lengths), -1, np.int64)
    rows_by_free: list[list[int]] = [[] for _ in range(row_length + 1)]
    rows_by_free[row_length] = list(range(rows))[::-1]
    # Bit f is set if there is a row with f free columns. The lowest set bit at or above `length` is
    # the fullest row with room for the text.
    free_bits = 1 << row_length
    for text in np.argsort(-lengths, kind='stable').tolist():
        length = int(lengths[text])
        fitting = free_bits >> length << length
        if not fitting:
            continue
        free = (fitting & -fitting).bit_length() - 1
        row = rows_by_free[free].pop()
        if not rows_by_free[free]:
            free_bits &= ~(1 << free)
        starts[text] = row * row_length + row_length - free
        rows_by_free[free - length].append(row)
        free_bits |= 1 << (free - length)
    return starts


def pack_pairs(lengths_bxT: np.ndarray, rows: int, row_length: int) -> np.ndarray:
    """Returns int64[b, T]: the start of each text of b pairs, in the format of `pack`.

    Either all texts of a pair fit, or all of them have -1.

    If not all pairs fit, about as few of the last pairs as necessary are left out. The order of
    pairs is random, and so are the pairs that are left out. `pack` alone would leave out the
    shortest texts: that affects more pairs, and always pairs of one kind.
    """
    pairs, texts = lengths_bxT.shape
    starts_kxT = np.zeros((0, texts), np.int64)
    # Bisection: the first len(starts_kxT) pairs fit together, the first `too_many` pairs do not.
    too_many = pairs + 1
    tried = pairs
    while too_many - len(starts_kxT) > 1:
        starts = pack(lengths_bxT[:tried].reshape(-1), rows, row_length)
        if (starts < 0).any():
            too_many = tried
        else:
            starts_kxT = starts.reshape(tried, texts)
        tried = (len(starts_kxT) + too_many) // 2
    return np.pad(starts_kxT, ((0, pairs - len(starts_kxT)), (0, 0)), constant_values=-1)


def count_rows_needed(lengths: np.ndarray, row_length: int) -> int:
    """Returns the number of rows that `pack` fills if the number of rows is not limited."""
    starts = pack(lengths, len(lengths), row_length)
    return int(starts.max()) // row_length + 1


def propose_rows(
    lengths_PxT: np.ndarray, pairs: int, row_length: int, groups: int = 64
) -> tuple[int, np.ndarray]:
    """Returns the smallest number of rows with which less than one pair in 1,000 does not fit.

    Every row is computed in every step, even if most groups leave it empty, so the number must be
    tight: with 256 real (docstring, function) pairs in rows of 64 columns, the chosen rows are 96 %
    full; rows for the mean plus four standard deviations would be 92 % full.

    Args:
      lengths_PxT: number of tokens of each text of P sampled pairs; 0 if there is no text.
      pairs: number of pairs in a group, which is one chunk of one device.
      row_length: number of columns of a row.
      groups: minimum number of random trial groups; the trials have at least 32,768 pairs in total.

    Returns:
      (rows, needed_I). `rows` loses one pair in 2,000 of the trial groups, and is then raised by
      the relative standard error of the sample's mean tokens per pair. `needed_I` is
      int[I], the number of rows that each trial group needs.

    Raises:
      UserError: a text is longer than a row.
    """
    if lengths_PxT.max() > row_length:
        raise UserError(
            f'data.row_length={row_length} is shorter than a text of {lengths_PxT.max()} tokens: '
            f'set it to at least data.max_tokens_x and data.max_tokens_y'
        )
    random = np.random.default_rng(0)
    trials = max(groups, 32_768 // pairs)
    chosen_IxbxT = lengths_PxT[random.integers(len(lengths_PxT), size=(trials, pairs))]
    needed_I = np.array([count_rows_needed(group[group > 0], row_length) for group in chosen_IxbxT])

    def count_lost_pairs(rows: int) -> int:
        # A group that lacks some fraction of its rows loses the same fraction of its pairs, rounded
        # up.
        return np.sum(-(np.minimum(rows - needed_I, 0) * pairs // needed_I))

    rows = int(needed_I.min())
    while count_lost_pairs(rows) > needed_I.size * pairs / 2000:
        rows += 1
    tokens_P = lengths_PxT.sum(1)
    error = tokens_P.std() / tokens_P.mean() / np.sqrt(len(tokens_P))
    # With one row per text, every batch fits.
    return min(round(rows * (1 + error)), pairs * lengths_PxT.shape[1]), needed_I


def propose_smaller_row_counts(
    needed_I: np.ndarray, most: int, groups: int, choices: int
) -> tuple[int, ...]:
    """Returns row counts below `most`, ascending, for batches that need fewer rows.

    Counts are chosen greedily: each added count is the one that saves the most rows, and a count
    that saves less than 1 % is not added. With 64 real (docstring, function) pairs in rows of 256
    columns, 46 rows fit nearly every batch and are 87 % full; with 39, 41 and 43 as further
    choices, rows are 96 % full.

    Args:
      needed_I: int, number of rows that each trial group needs.
      most: maximum number of rows.
      groups: number of groups in a batch; all have the row count of the group that needs the most.
      choices: maximum number of row counts, including `most`.
    """
    random = np.random.default_rng(0)
    needed_N = np.minimum(random.choice(needed_I, (1024, groups)).max(1), most)
    counts = [most]

    def compute_mean_rows(counts: list[int]) -> float:
        return np.array(counts)[np.searchsorted(counts, needed_N)].mean()

    while len(counts) < choices:
        candidates = [sorted({*counts, count}) for count in range(needed_N.min(), most + 1)]
        best = min(candidates, key=compute_mean_rows)
        if compute_mean_rows(best) > 0.99 * compute_mean_rows(counts):
            break
        counts = best
    return tuple(counts[:-1])
