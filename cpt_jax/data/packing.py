"""Texts into rows: several texts share a row, so that hardly a token of padding is computed."""

import numpy as np

from cpt_jax.runtime.errors import UserError


def pack(lengths: np.ndarray, rows: int, row_length: int) -> np.ndarray:
    """Where each text starts, as row * row_length + column, or -1 for a text that does not fit.

    Best fit, longest first: each text goes into the fullest row that still holds it. A pure
    function of the lengths.
    """
    starts = np.full(len(lengths), -1, np.int64)
    by_room: list[list[int]] = [[] for _ in range(row_length + 1)]
    by_room[row_length] = list(range(rows))[::-1]
    rooms = 1 << row_length  # bit r is set where a row with r free columns exists
    for text in np.argsort(-lengths, kind='stable').tolist():
        length = int(lengths[text])
        fitting = rooms >> length << length
        if not fitting:
            continue
        room = (fitting & -fitting).bit_length() - 1
        row = by_room[room].pop()
        if not by_room[room]:
            rooms &= ~(1 << room)
        starts[text] = row * row_length + row_length - room
        by_room[room - length].append(row)
        rooms |= 1 << (room - length)
    return starts


def pack_pairs(lengths_bxT: np.ndarray, rows: int, row_length: int) -> np.ndarray:
    """`pack` for the texts of pairs, [b, T] -> [b, T]: all texts of a pair have a place, or each
    has -1.

    Where not all fit, pairs are left out from the last one on, and about as few as it takes. What
    stands last is chance, whereas `pack` by itself would leave out the shortest texts, which is
    more pairs, and always pairs of one kind.
    """
    pairs, texts = lengths_bxT.shape
    starts_kxT = np.zeros((0, texts), np.int64)
    too_many, tried = pairs + 1, pairs
    while too_many - len(starts_kxT) > 1:
        starts = pack(lengths_bxT[:tried].reshape(-1), rows, row_length)
        if (starts < 0).any():
            too_many = tried
        else:
            starts_kxT = starts.reshape(tried, texts)
        tried = (len(starts_kxT) + too_many) // 2
    return np.pad(starts_kxT, ((0, pairs - len(starts_kxT)), (0, 0)), constant_values=-1)


def rows_needed(lengths: np.ndarray, row_length: int) -> int:
    """Number of rows that `pack` fills when it may take as many as it wants."""
    starts = pack(lengths, len(lengths), row_length)
    return int(starts.max()) // row_length + 1


def propose_rows(
    lengths_PxT: np.ndarray, pairs: int, row_length: int, groups: int = 64
) -> tuple[int, np.ndarray]:
    """The fewest rows with which fewer than one pair in a thousand does not fit.

    Every row that most groups leave empty is computed in every step: with 256 real pairs of
    docstring and function in rows of 64, rows for the mean and four standard deviations are 92 %
    full, and these are 96 %.

    Args:
      lengths_PxT: tokens of each text of P sampled pairs, 0 where a text is missing.
      pairs: pairs in a group: those of one device (and one chunk).
      row_length: columns.
      groups: how many random groups are packed on trial, and with small groups more: 32,768 pairs
        at least.

    Returns:
      As many as lose one pair in 2,000 of the trial groups, and a share more: the standard error of
        the sample's mean tokens a pair.
      And int[G]: what each of the trial groups needs.
    """
    if lengths_PxT.max() > row_length:
        raise UserError(
            f'data.row_length={row_length} is shorter than a text of {lengths_PxT.max()} tokens: '
            f'set it to data.max_tokens_x and data.max_tokens_y or more'
        )
    random = np.random.default_rng(0)
    chosen_GxbxT = lengths_PxT[
        random.integers(len(lengths_PxT), size=(max(groups, 32_768 // pairs), pairs))
    ]
    needed_G = np.array([rows_needed(group[group > 0], row_length) for group in chosen_GxbxT])
    rows = int(needed_G.min())
    while (
        np.sum(-(np.minimum(rows - needed_G, 0) * pairs // needed_G)) > needed_G.size * pairs / 2000
    ):
        rows += 1
    tokens_P = lengths_PxT.sum(1)
    error = tokens_P.std() / tokens_P.mean() / np.sqrt(len(tokens_P))
    # With a row for each text, any batch fits.
    return min(round(rows * (1 + error)), pairs * lengths_PxT.shape[1]), needed_G


def propose_smaller(needed_G: np.ndarray, most: int, groups: int, choices: int) -> tuple[int, ...]:
    """Row counts below `most`, for batches that need no more: each saves the most, and none is
    added that saves less than a hundredth.

    With 64 real pairs of docstring and function in rows of 256, 46 rows hold nearly every batch and
    are 87 % full; with 39, 41 and 43 to choose from it is 96 %.

    Args:
      needed_G: rows that trial groups need.
      groups: of a batch; all have as many rows as the one that needs the most.
      choices: row counts, `most` included.
    """
    random = np.random.default_rng(0)
    needed_N = np.minimum(random.choice(needed_G, (1024, groups)).max(1), most)
    counts = [most]

    def mean_rows(counts: list[int]) -> float:
        return np.array(counts)[np.searchsorted(counts, needed_N)].mean()

    while len(counts) < choices:
        more = min(
            (sorted({*counts, count}) for count in range(needed_N.min(), most + 1)), key=mean_rows
        )
        if mean_rows(more) > 0.99 * mean_rows(counts):
            break
        counts = more
    return tuple(counts[:-1])
