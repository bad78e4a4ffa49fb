"""Packing compared with a simple slow packer, and proposed row counts tested on unseen groups."""

import itertools

import numpy as np
import pytest

from cpt_jax.data.packing import (
    count_rows_needed,
    pack,
    pack_pairs,
    propose_rows,
    propose_smaller_row_counts,
)
from cpt_jax.runtime.errors import UserError


def pack_slowly(lengths, rows, row_length):
    """Puts each text, longest first, into the fullest row that has room for it.

    Returns:
      The sorted numbers of used columns of all rows, and the texts that do not fit.
    """
    used = [0] * rows
    left_out = []
    for text in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [row for row in range(rows) if used[row] + lengths[text] <= row_length]
        if fitting:
            used[max(fitting, key=lambda row: used[row])] += lengths[text]
        else:
            left_out.append(text)
    return sorted(used), left_out


def find_fewest_rows(lengths, row_length, free=()):
    """Returns the smallest number of rows that fits all texts, by exhaustive search.

    Args:
      lengths: lengths of the texts that are not placed yet.
      row_length: number of columns of a row.
      free: number of free columns of each row that is in use.
    """
    if not lengths:
        return len(free)
    first, *rest = lengths
    tries = [
        free[:i] + (columns - first,) + free[i + 1 :]
        for i, columns in enumerate(free)
        if columns >= first
    ]
    tries.append((*free, row_length - first))
    return min(find_fewest_rows(rest, row_length, tried) for tried in tries)


def draw_cases(count, texts, row_length):
    """Yields random text lengths and a number of rows."""
    random = np.random.default_rng(0)
    for _ in range(count):
        yield (
            random.integers(1, row_length + 1, random.integers(1, texts + 1)),
            int(random.integers(1, 8)),
        )


@pytest.mark.parametrize('row_length', [1, 7, 64])
def test_texts_do_not_overlap_or_cross_rows(row_length):
    for lengths, rows in draw_cases(200, 40, row_length):
        taken = np.zeros(rows * row_length, int)
        for start, length in zip(pack(lengths, rows, row_length), lengths, strict=True):
            if start >= 0:
                assert start // row_length == (start + length - 1) // row_length
                taken[start : start + length] += 1
        assert taken.max(initial=0) <= 1


def test_packing_is_best_fit_longest_first():
    for lengths, rows in draw_cases(300, 40, 32):
        starts = pack(lengths, rows, 32)
        used, left_out = pack_slowly(lengths.tolist(), rows, 32)
        placed = starts >= 0
        found = np.bincount(starts[placed] // 32, lengths[placed], minlength=rows)
        assert sorted(found.astype(int)) == used
        assert np.flatnonzero(~placed).tolist() == sorted(left_out)
        # The texts that are left out fit in no row.
        assert all(lengths[text] > 32 - used[0] for text in left_out)


def test_rows_needed_are_close_to_the_optimum():
    """Best fit decreasing needs at most 11/9 * optimum + 6/9 rows (Johnson 1974, Dosa 2007)."""
    found = {True: 0, False: 0}
    for lengths, _ in draw_cases(150, 7, 12):
        fewest = find_fewest_rows(lengths.tolist(), 12)
        needed = count_rows_needed(lengths, 12)
        assert fewest <= needed <= 11 / 9 * fewest + 6 / 9
        assert (pack(lengths, needed, 12) >= 0).all()
        assert needed == 1 or (pack(lengths, needed - 1, 12) < 0).any()
        found[fewest == needed] += 1
    assert found[True] > 140


def test_packing_is_deterministic():
    lengths = np.random.default_rng(0).integers(1, 33, 500)
    first = pack(lengths, 300, 64)
    np.testing.assert_array_equal(pack(lengths.copy(), 300, 64), first)
    assert first.dtype == np.int64
    assert (first >= 0).all()


def test_full_batch_has_less_than_1_percent_padding():
    lengths = np.clip(np.random.default_rng(0).lognormal(4, 0.8, 4096).astype(int), 2, 256)
    assert lengths.sum() / (count_rows_needed(lengths, 512) * 512) > 0.99


def draw_samples(count, seed):
    """Yields (name, lengths of the texts of `count` pairs) of typical corpora."""
    random = np.random.default_rng(seed)
    yield 'alike', random.integers(2, 65, (count, 2))
    yield 'full', np.full((count, 2), 64)
    yield 'skewed', np.clip(random.lognormal(2.5, 0.9, (count, 2)).astype(int), 2, 64)
    yield (
        'rarely long',
        np.where(random.random((count, 1)) < 0.01, 64, random.integers(2, 10, (count, 2))),
    )
    yield (
        'with missing texts',
        random.integers(2, 65, (count, 4)) * (random.random((count, 4)) > [0, 0, 0.3, 0.6]),
    )


@pytest.mark.parametrize(
    ('pairs', 'row_length'),
    [(1, 64), (4, 100), (4, 256), (64, 64), (64, 256), (512, 100), (512, 256)],
)
def test_proposed_rows_fit_unseen_groups(pairs, row_length):
    for (name, seen), (_, fresh) in zip(
        draw_samples(4096, 1), draw_samples(max(4096, 64 * pairs), 2), strict=True
    ):
        rows, needed_I = propose_rows(seen, pairs, row_length)
        groups = fresh.reshape(-1, pairs, fresh.shape[1])
        dropped = sum(np.sum(pack_pairs(group, rows, row_length)[:, 0] < 0) for group in groups)
        assert dropped < len(fresh) / 1000, (name, rows, dropped)
        most = max(count_rows_needed(group[group > 0], row_length) for group in groups)
        assert rows <= 1.02 * most + 1, name


# Quantiles 0, 1/16, ..., 1 of the lengths, in tokens, of real docstrings (at most 32) and functions
# (at most 64).
REAL = {
    'quickstart': (
        [5, 8, 9, 10, 11, 12, 13, 14, 14, 15, 16, 17, 18, 20, 24, 32, 32],
        [15, 37, 47, 55, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64],
    ),
    'small_pairs': (  # functions in six languages
        [5, 8, 9, 10, 11, 12, 13, 14, 16, 17, 19, 21, 24, 29, 32, 32, 32],
        [6, 22, 27, 33, 39, 46, 53, 61, 64, 64, 64, 64, 64, 64, 64, 64, 64],
    ),
}


@pytest.mark.parametrize(('pairs', 'choices'), [(256, 1), (64, 4)])
@pytest.mark.parametrize('config', REAL)
def test_rows_of_real_pairs_have_less_than_5_percent_padding(config, pairs, choices):
    random = np.random.default_rng(0)

    def draw(count):
        return np.stack(
            [
                np.interp(random.random(count), np.linspace(0, 1, 17), quantiles)
                .round()
                .astype(int)
                for quantiles in REAL[config]
            ],
            axis=1,
        )

    most, needed_I = propose_rows(draw(4096), pairs, 64)
    counts = [*propose_smaller_row_counts(needed_I, most, 1, choices), most]
    lengths_IxbxT = draw(256 * 128).reshape(-1, pairs, 2)
    starts_IxbxT = np.array([pack_pairs(group, most, 64) for group in lengths_IxbxT])
    dropped_Gxb = starts_IxbxT[..., 0] < 0
    assert dropped_Gxb.mean() < 0.001
    rows = sum(
        min(count for count in counts if count * 64 > starts.max()) for starts in starts_IxbxT
    )
    assert lengths_IxbxT[~dropped_Gxb].sum() / (rows * 64) > 0.95


@pytest.mark.parametrize('groups', [1, 3])
def test_smaller_row_counts_save_nearly_the_most_rows(groups):
    needed_I = np.repeat([20, 25, 26, 40, 50], [30, 30, 20, 15, 5])
    random = np.random.default_rng(1)
    drawn_N = random.choice(needed_I, (4096, groups)).max(1)

    def mean_rows(counts):
        return np.mean([min(count for count in counts if count >= rows) for rows in drawn_N])

    for choices in (1, 2, 3, 5):
        found = propose_smaller_row_counts(needed_I, 50, groups, choices)
        assert len(found) < choices
        assert {*found} <= {20, 25, 26, 40}
        # The greedy choice is close to the best combination.
        best = min(
            mean_rows((*some, 50)) for some in itertools.combinations((20, 25, 26, 40), len(found))
        )
        assert mean_rows((*found, 50)) <= 1.03 * best
    assert propose_smaller_row_counts(needed_I, 50, groups, 4) == propose_smaller_row_counts(
        needed_I.copy(), 50, groups, 4
    )


def test_row_counts_that_save_less_than_1_percent_are_not_added():
    assert propose_smaller_row_counts(np.full(64, 7), 7, 1, 4) == ()
    assert propose_smaller_row_counts(np.repeat([99, 100], 32), 100, 1, 4) == ()
    # Nearly every batch of 64 groups has a group that needs all rows.
    assert propose_smaller_row_counts(np.repeat([50, 100], [3, 97]), 100, 64, 4) == ()


@pytest.mark.parametrize('rows', [2, 3, 8, 30])
def test_last_pairs_are_left_out_as_a_whole(rows):
    lengths_bxT = np.random.default_rng(0).integers(0, 33, (20, 3))
    starts_bxT = pack_pairs(lengths_bxT, rows, 64)
    kept = np.sum(starts_bxT[:, 0] >= 0)
    assert (starts_bxT[:kept] >= 0).all() and (starts_bxT[kept:] == -1).all()
    np.testing.assert_array_equal(
        starts_bxT[:kept].reshape(-1), pack(lengths_bxT[:kept].reshape(-1), rows, 64)
    )
    # One more pair would not fit.
    assert kept == 20 or (pack(lengths_bxT[: kept + 1].reshape(-1), rows, 64) < 0).any()
    assert kept == 20 if rows == 30 else 0 < kept < 20


def test_text_longer_than_a_row_is_refused():
    with pytest.raises(UserError, match='data.row_length=32 is shorter than .* 40 tokens'):
        propose_rows(np.array([[3, 40], [2, 2]]), 2, 32)
