"""Texts into rows: several texts share a row, so that hardly a token of padding is computed."""

import numpy as np

from cpt_jax.errors import UserError


def pack(lengths: np.ndarray, rows: int, row_length: int) -> np.ndarray:
    """Where each text starts, as row * row_length + column, or -1 for a text that does not fit.

    Best fit, longest first: each text goes into the fullest row that still holds it. A pure function of the lengths.
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


def rows_needed(lengths: np.ndarray, row_length: int) -> int:
    """Number of rows that `pack` fills when it may take as many as it wants."""
    starts = pack(lengths, len(lengths), row_length)
    return int(starts.max()) // row_length + 1


def propose_rows(lengths_PxT: np.ndarray, pairs: int, row_length: int, groups: int = 64) -> int:
    """Rows that hold any group of so many pairs, but for fewer than one pair in a thousand.

    Args:
      lengths_PxT: tokens of each text of P sampled pairs, 0 where a text is missing.
      pairs: pairs in a group: those of one device (and one chunk).
      row_length: columns.
      groups: how many random groups are packed on trial, and with small groups more: 8192 pairs at least.

    Returns:
      The mean number of rows that the trial groups need plus four standard deviations, and not below the largest seen.
    """
    if lengths_PxT.max() > row_length:
        raise UserError(f'data.row_length={row_length} is shorter than a text of {lengths_PxT.max()} tokens: set it to max_tokens or more')
    random = np.random.default_rng(0)
    chosen_GxbxT = lengths_PxT[random.integers(len(lengths_PxT), size=(max(groups, 8192 // pairs), pairs))]
    needed = [rows_needed(group[group > 0], row_length) for group in chosen_GxbxT]
    proposed = max(max(needed), int(np.ceil(np.mean(needed) + 4 * np.std(needed))))
    return min(proposed, pairs * lengths_PxT.shape[1])  # a row a text holds anything
