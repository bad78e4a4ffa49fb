"""Batches: every token once, in its place, on any mesh."""

import grain
import jax
import numpy as np
import pytest

from cpt_jax.data.batch import (
    Layout,
    Texts,
    local_batches,
    pack_group,
    place,
    plan_layout,
    sample_lengths,
)
from cpt_jax.data.mixture import batches
from cpt_jax.data.pairs import Pair, check_negatives, content_id
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import BATCH, make_mesh
from tests.conftest import sentences


class Pairs:
    """A source of made-up pairs: number i has i % 4 hard negatives, and every tenth x is the
    same.
    """

    documents = None

    def __init__(self, count: int = 200):
        rows = [sentences(6, seed=i, words=25) for i in range(count)]
        self.reads = 0
        self.pairs = [
            Pair('the same' if i % 10 == 0 else row[0], row[1], tuple(row[2 : 2 + i % 4]))
            for i, row in enumerate(rows)
        ]

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        self.reads += 1
        return self.pairs[index]


@pytest.fixture
def texts(tokenizer) -> Texts:
    return Texts([Pairs()], tokenizer, 24, 32, negatives=2)


def texts_of(batch, layout: Layout) -> list[tuple]:
    """(tokens of every text, content ids) of each pair of a part's batch, read back from its
    rows.
    """
    found = []
    for tokens, segments, positions, eos, ids in zip(*batch[:5], strict=True):
        for eos_T, ids_T in zip(eos, ids, strict=True):
            pair = []
            for place_, identity in zip(eos_T, ids_T, strict=True):
                if not identity:
                    pair.append(())
                    continue
                row, column = divmod(int(place_), layout.row_length)
                start = column - int(positions[row, column])
                assert (
                    len(set(segments[row, start : column + 1])) == 1 and segments[row, column] > 0
                )
                np.testing.assert_array_equal(
                    positions[row, start : column + 1], np.arange(column + 1 - start)
                )
                pair.append(tuple(tokens[row, start : column + 1].tolist()))
            found.append((*pair, *ids_T.tolist()))
    return found


def expected(texts: Texts, index: int) -> tuple:
    """What `texts_of` finds of a pair."""
    pair = texts.sources[0].pairs[index]
    x, y = (
        texts.tokenizer.encode([pair.x], 'x', 24),
        texts.tokenizer.encode([pair.y, *pair.negatives[:2]], 'y', 32),
    )
    gaps = 2 - len(pair.negatives[:2])
    ids = [content_id(text) for text in (pair.x, pair.y, *pair.negatives[:2])] + [0] * gaps
    return (*(tuple(array.tolist()) for array in x + y), *[()] * gaps, *ids)


def test_texts_are_delimited_cut_and_have_ids_of_their_content(texts):
    tokens, ids = texts(0, np.arange(20))
    assert ids.dtype == np.int32 and ids.shape == (20, 4)
    for index in range(20):
        assert (*(tuple(text.tolist()) for text in tokens[index]), *ids[index]) == expected(
            texts, index
        )
    assert (
        ids[0, 0]
        == ids[10, 0]
        == content_id('the same')
        == content_id(' the same\n')
        != content_id('thesame')
    )
    assert len(np.unique(ids[1:10, :2])) == 18
    assert max(len(x) for x, *_ in tokens) == 24
    assert (ids[::4, 2:] == 0).all() and (ids[2::4, 2:] > 0).all()


def test_texts_are_read_once(texts, monkeypatch):
    first, ids = texts(0, np.arange(30))
    again, ids_again = texts(0, np.arange(30)[::-1])
    assert texts.sources[0].reads == 30
    np.testing.assert_array_equal(ids_again, ids[::-1])
    assert [list(map(list, pair)) for pair in again[::-1]] == [
        list(map(list, pair)) for pair in first
    ]
    monkeypatch.setattr(Texts, 'CACHE_PAIRS', 10)
    for _ in range(2):
        mixed, ids = texts(0, np.array([5, 150, 3, 150]))
        assert [list(map(list, pair)) for pair in mixed[1::2]] == 2 * [list(map(list, mixed[1]))]
        assert ids[0].tolist() == list(expected(texts, 5)[4:]) and ids[1].tolist() == list(
            expected(texts, 150)[4:]
        )
    assert texts.sources[0].reads == 32 + 2 * 1


def test_a_group_holds_every_token_once(texts):
    tokens, ids = texts(0, np.arange(16))
    layout = Layout(parts=1, chunks=1, pairs=16, texts=4, rows=16, row_length=64)
    batch = pack_group(tokens, ids, layout)
    assert {array.dtype for array in batch} == {np.dtype(np.int32)}
    assert texts_of([array[None] for array in batch[:5]], layout) == [
        expected(texts, i) for i in range(16)
    ]
    assert np.sum(batch.segments_CxRxS > 0) == sum(len(text) for pair in tokens for text in pair)
    padding = batch.segments_CxRxS == 0
    assert not batch.tokens_CxRxS[padding].any() and not batch.positions_CxRxS[padding].any()
    assert len(np.unique(batch.segments_CxRxS[~padding])) == sum(
        len(text) > 0 for pair in tokens for text in pair
    )


def test_a_pair_that_does_not_fit_has_no_ids(texts):
    tokens, ids = texts(0, np.arange(16))
    layout = Layout(parts=1, chunks=1, pairs=16, texts=4, rows=7, row_length=64)
    batch = pack_group(tokens, ids, layout)
    whole = batch.ids_CxBxT[:, 0] > 0
    assert 0 < whole.sum() < 16
    assert not batch.ids_CxBxT[~whole].any()
    assert (batch.eos_CxBxT >= 0).all() and (batch.eos_CxBxT < 7 * 64).all()
    found = texts_of(
        [
            array[None] if array.ndim < 2 or len(array) != 16 else array[whole][None]
            for array in batch[:5]
        ],
        layout,
    )
    assert found == [expected(texts, i) for i in np.flatnonzero(whole)]


def all_pairs(
    texts: Texts,
    sizes: tuple[int, int, int],
    chunks: int,
    step: int,
    size: int = 16,
    packed: bool = True,
) -> list[tuple]:
    """The pairs of a step on a mesh, by way of the arrays on its devices."""
    mesh = make_mesh(*sizes)
    layout = plan_layout(texts, mesh, size, chunks, row_length=64, rows=0, packed=packed)
    local = local_batches(
        batches({'a': texts.sources[0]}, {'a': 1.0}, 0, size), texts, layout, mesh
    )[step]
    batch = place(local, mesh, layout)
    *batch, source = batch
    assert source.shape == () and int(source) == 0 and source.sharding.is_fully_replicated
    assert batch[0].shape == (chunks, layout.parts * layout.rows, 64)
    assert (
        batch[3].shape
        == batch[4].shape
        == (chunks, -(-size // (chunks * layout.parts)) * layout.parts, 4)
    )
    found = []
    parts = {}
    for shards in zip(*(array.addressable_shards for array in batch), strict=True):
        assert len({shard.device for shard in shards}) == 1
        parts[shards[3].index[1].start or 0] = [np.asarray(shard.data) for shard in shards]
    assert len(parts) == layout.parts == len(local)
    for start in sorted(parts):
        found += texts_of(parts[start], layout)
    for array in batch:
        assert array.sharding.spec == jax.P(None, BATCH) and array.dtype == np.int32
    return found


@pytest.mark.parametrize(
    ('sizes', 'chunks'),
    [
        ((8, 1, 1), 1),
        ((1, 8, 1), 2),
        ((2, 2, 2), 1),
        ((2, 2, 2), 4),
        ((1, 1, 8), 1),
        ((1, 1, 8), 16),
    ],
)
@pytest.mark.parametrize('packed', [True, False])
def test_the_pairs_of_a_step_do_not_depend_on_the_layout(texts, sizes, chunks, packed):
    for step in (0, 7, 30):
        chosen = batches({'a': texts.sources[0]}, {'a': 1.0}, 0, 16)[step].pairs
        assert sorted(all_pairs(texts, sizes, chunks, step, packed=packed)) == sorted(
            expected(texts, int(i)) for i in chosen
        )


@pytest.mark.parametrize(
    ('sizes', 'chunks', 'size'),
    [((8, 1, 1), 1, 13), ((2, 2, 2), 3, 14), ((1, 8, 1), 2, 17), ((1, 1, 8), 4, 7)],
)
def test_a_batch_of_any_size_goes_on_any_mesh(texts, sizes, chunks, size):
    """What is left over are places without tokens and ids, at the end."""
    chosen = batches({'a': texts.sources[0]}, {'a': 1.0}, 0, size)[3].pairs
    found = all_pairs(texts, sizes, chunks, 3, size)
    nothing = ((), (), (), (), 0, 0, 0, 0)
    assert [pair for pair in found if pair != nothing] == [expected(texts, int(i)) for i in chosen]
    assert found.count(nothing) == len(found) - size > 0


def test_texts_that_are_not_packed_have_a_row_each(texts):
    tokens, ids = texts(0, np.arange(16))
    layout = plan_layout(texts, make_mesh(1, 1, 8), 16, 1, row_length=64, rows=0, packed=False)
    assert layout.rows == 16 * 4
    batch = pack_group(tokens, ids, layout)
    assert (batch.positions_CxRxS[:, 0] == 0).all() and (
        np.diff(batch.segments_CxRxS, axis=1) <= 0
    ).all()


def test_a_batch_takes_the_fewest_rows_that_hold_it(texts):
    """Otherwise it is the same: nothing is left out but rows that hold nothing."""
    mesh = make_mesh(2, 1, 4)
    indices = batches({'a': texts.sources[0]}, {'a': 1.0}, 0, 128)
    one, some = (
        plan_layout(texts, mesh, 128, 2, row_length=64, rows=0, row_choices=choices)
        for choices in (1, 3)
    )
    counts = [*some.smaller_row_counts, some.rows]
    assert (
        one.smaller_row_counts == ()
        and len(counts) == len(set(counts)) == 3
        and counts == sorted(counts)
        and counts[-1] == one.rows
    )
    seen = set()
    for step in range(24):
        whole, cut = (local_batches(indices, texts, layout, mesh)[step] for layout in (one, some))
        (rows,) = {batch.tokens_CxRxS.shape[1] for batch in cut.values()}
        needed = max(
            np.flatnonzero(batch.segments_CxRxS.any((0, 2))).max() + 1 for batch in whole.values()
        )
        assert rows == min(count for count in counts if count >= needed)
        seen.add(rows)
        for part, batch in whole.items():
            for field, a, b in zip(batch._fields, batch, cut[part], strict=True):
                np.testing.assert_array_equal(a[:, :rows] if field.endswith('RxS') else a, b)
        assert place(cut, mesh, some).tokens_CxRxS.shape == (2, 2 * rows, 64)
    assert len(seen) > 1


def test_a_batch_says_which_source_it_is_of(tokenizer):
    both = Texts([Pairs(), Pairs()], tokenizer, 24, 32, negatives=0)
    mesh = make_mesh(8, 1, 1)
    layout = plan_layout(both, mesh, 16, 1, row_length=64, rows=0)
    indices = batches({'a': both.sources[0], 'b': both.sources[1]}, {'a': 1.0, 'b': 1.0}, 0, 16)
    data = local_batches(indices, both, layout, mesh)
    found = [int(place(data[step], mesh, layout).source) for step in range(8)]
    assert found == [indices[step].source for step in range(8)] and set(found) == {0, 1}


def test_a_step_is_the_same_by_index_and_by_iteration(texts):
    mesh = make_mesh(2, 2, 2)
    layout = plan_layout(texts, mesh, 16, 2, row_length=64, rows=0)
    data = local_batches(batches({'a': texts.sources[0]}, {'a': 1.0}, 0, 16), texts, layout, mesh)
    upcoming = iter(
        data[11:].to_iter_dataset(grain.ReadOptions(num_threads=3, prefetch_buffer_size=4))
    )
    for step in range(11, 26):
        for part, batch in next(upcoming).items():
            for a, b in zip(batch, data[step][part], strict=True):
                np.testing.assert_array_equal(a, b)


def test_rows_are_as_many_as_needed_or_as_said(texts):
    mesh = make_mesh(2, 2, 2)
    layout = plan_layout(texts, mesh, 16, 2, row_length=64, rows=5)
    assert (
        layout == Layout(parts=4, chunks=2, pairs=2, texts=4, rows=5, row_length=64)
        and layout.tokens == 4 * 2 * 5 * 64
    )
    lengths = sample_lengths(texts, 0, 50)
    assert lengths.shape == (50, 4)
    assert lengths[0].tolist() == [len(text) for text in expected(texts, 0)[:4]]
    assert lengths[-1].tolist() == [len(text) for text in expected(texts, 199)[:4]]


def test_hard_negatives_that_no_pair_has_are_refused():
    sources = {'a': Pairs(10), 'b': Pairs(2)}  # of which some have 3
    check_negatives(sources, 3)
    with pytest.raises(
        UserError,
        match=r'^data\.negatives=4: pairs of data\.sources\.a, data\.sources\.b have 3 at most: '
        r'lower it',
    ):
        check_negatives(sources, 4)
    unread = Pairs(10)
    check_negatives({'a': unread}, 0)
    assert not unread.reads


def test_a_batch_with_fewer_pairs_than_chunks_on_all_devices_is_refused_by_key(texts):
    with pytest.raises(
        UserError, match=r'train.batch_pairs=7 is less than .* = 4 times train.encode_chunks=2'
    ):
        plan_layout(texts, make_mesh(2, 2, 2), 7, 2, row_length=64, rows=0)
