"""Batches: every token occurs once at its index, on any mesh."""

import tracemalloc

import grain
import jax
import numpy as np
import pytest

from cpt_jax.data.batch import (
    Batch,
    Layout,
    make_local_batches,
    pack_group,
    place_batch,
    plan_layout,
)
from cpt_jax.data.equality import hash_tokens, normalize_text
from cpt_jax.data.mixture import make_batches
from cpt_jax.data.pairs import Pair, check_negatives, compute_content_id
from cpt_jax.data.token_reader import PairTokenReader, sample_lengths
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import BATCH, make_mesh
from cpt_jax.training.agreed_rows import add_rows, agree_on_rows
from tests.conftest import sentences


class Pairs:
    """A source of artificial pairs; pair i has i % 4 hard negatives, and every tenth x is equal."""

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


class EndlessPairs(Pairs):
    """Those pairs again and again, as if they were others."""

    def __getitem__(self, index):
        return super().__getitem__(index % len(self))


@pytest.fixture
def reader(tokenizer) -> PairTokenReader:
    return PairTokenReader([Pairs()], tokenizer, 24, 32, negatives=2)


def unpack(batch, layout: Layout) -> list[tuple]:
    """Returns (tokens of every text, ids of every text) of each pair in the rows of a part's
    batch.
    """
    found = []
    for tokens, segments, positions, eos, ids in zip(*batch[:5], strict=True):
        for eos_T, ids_TxZ in zip(eos, ids, strict=True):
            pair = []
            for eos_index, text_ids in zip(eos_T, ids_TxZ.tolist(), strict=True):
                assert all(text_ids) or not any(text_ids)
                if not any(text_ids):
                    pair.append(())
                    continue
                row, column = divmod(int(eos_index), layout.row_length)
                start = column - int(positions[row, column])
                assert len(set(segments[row, start : column + 1])) == 1
                assert segments[row, column] > 0
                np.testing.assert_array_equal(
                    positions[row, start : column + 1], np.arange(column + 1 - start)
                )
                pair.append(tuple(tokens[row, start : column + 1].tolist()))
            found.append((*pair, *map(tuple, ids_TxZ.tolist())))
    return found


def expected(reader: PairTokenReader, index: int) -> tuple:
    """Returns what `unpack` must find for a pair."""
    pair = reader.sources[0].pairs[index]
    x = reader.tokenizer.encode([pair.x], 'x', 24)
    y = reader.tokenizer.encode([pair.y, *pair.negatives[:2]], 'y', 32)
    missing = 2 - len(pair.negatives[:2])
    ids = [
        (compute_content_id(normalize_text(text, fold_case=False)), hash_tokens(tokens[1:-1]))
        for text, tokens in zip((pair.x, pair.y, *pair.negatives[:2]), x + y, strict=True)
    ]
    ids += [(0, 0)] * missing
    return (*(tuple(array.tolist()) for array in x + y), *[()] * missing, *ids)


def test_texts_have_delimiters_are_truncated_and_have_content_ids(reader):
    tokens, ids = reader(0, np.arange(20))
    assert ids.dtype == np.int32
    assert ids.shape == (20, 4, 2)
    for index in range(20):
        texts = (tuple(text.tolist()) for text in tokens[index])
        assert (*texts, *map(tuple, ids[index].tolist())) == expected(reader, index)
    assert ids[0, 0, 0] == ids[10, 0, 0] == compute_content_id('the same')
    assert ids[0, 0, 1] == ids[10, 0, 1]
    assert compute_content_id('the same') == compute_content_id(' the same\n')
    assert compute_content_id('the same') != compute_content_id('thesame')
    assert len(np.unique(ids[1:10, :2])) == 36
    assert max(len(x) for x, *_ in tokens) == 24
    assert (ids[::4, 2:] == 0).all() and (ids[2::4, 2:] > 0).all()


def test_pairs_are_cached(reader):
    first, ids = reader(0, np.arange(30))
    again, ids_again = reader(0, np.arange(30)[::-1])
    assert reader.sources[0].reads == 30
    np.testing.assert_array_equal(ids_again, ids[::-1])
    assert [list(map(list, pair)) for pair in again[::-1]] == [
        list(map(list, pair)) for pair in first
    ]
    reader._max_cached_bytes = reader.cached_bytes
    for _ in range(2):
        mixed, ids = reader(0, np.array([5, 150, 3, 150]))
        assert [list(map(list, pair)) for pair in mixed[1::2]] == 2 * [list(map(list, mixed[1]))]
        assert [*map(tuple, ids[0].tolist())] == list(expected(reader, 5)[4:])
        assert [*map(tuple, ids[1].tolist())] == list(expected(reader, 150)[4:])
    # The cache is full: each call reads pair 150 again, twice.
    assert reader.sources[0].reads == 30 + 2 * 2


def test_cache_is_bounded_in_bytes(tokenizer):
    """The bound is that of the memory that Python allocates, within a quarter."""
    limit = 1 << 20
    reader = PairTokenReader([EndlessPairs()], tokenizer, 24, 32, 2, max_cached_bytes=limit)
    reader(0, np.arange(8))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    cached_before = reader.cached_bytes
    for start in range(8, 4000, 200):
        reader(0, np.arange(start, start + 200))
    allocated = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert limit <= reader.cached_bytes < limit + 5000
    assert 0.75 < allocated / (reader.cached_bytes - cached_before) < 1.25
    assert len(reader._cache) < 3000
    nothing = PairTokenReader([EndlessPairs()], tokenizer, 24, 32, 2, max_cached_bytes=0)
    nothing(0, np.arange(8))
    assert nothing.cached_bytes == 0


def test_group_contains_every_token_once(reader):
    tokens, ids = reader(0, np.arange(16))
    layout = Layout(parts=1, chunks=1, pairs=16, texts=4, rows=16, row_length=64)
    batch = pack_group(tokens, ids, layout)
    assert {array.dtype for array in batch[:6]} == {np.dtype(np.int32)}
    assert unpack([array[None] for array in batch[:5]], layout) == [
        expected(reader, i) for i in range(16)
    ]
    assert np.sum(batch.segments_JxRxS > 0) == sum(len(text) for pair in tokens for text in pair)
    padding = batch.segments_JxRxS == 0
    assert not batch.tokens_JxRxS[padding].any()
    assert not batch.positions_JxRxS[padding].any()
    assert len(np.unique(batch.segments_JxRxS[~padding])) == sum(
        len(text) > 0 for pair in tokens for text in pair
    )


def test_pair_that_does_not_fit_has_no_content_ids(reader):
    tokens, ids = reader(0, np.arange(16))
    layout = Layout(parts=1, chunks=1, pairs=16, texts=4, rows=7, row_length=64)
    batch = pack_group(tokens, ids, layout)
    whole = batch.ids_JxBxTxZ[:, 0, 0] > 0
    assert 0 < whole.sum() < 16
    assert not batch.ids_JxBxTxZ[~whole].any()
    assert (batch.eos_JxBxT >= 0).all() and (batch.eos_JxBxT < 7 * 64).all()
    found = unpack(
        [
            array[None] if array.ndim < 2 or len(array) != 16 else array[whole][None]
            for array in batch[:5]
        ],
        layout,
    )
    assert found == [expected(reader, i) for i in np.flatnonzero(whole)]


def read_step_from_devices(
    reader: PairTokenReader,
    sizes: tuple[int, int, int],
    chunks: int,
    step: int,
    size: int = 16,
    packed: bool = True,
) -> list[tuple]:
    """Returns the pairs of a step, unpacked from the arrays on the devices of a mesh."""
    mesh = make_mesh(*sizes)
    layout = plan_layout(reader, mesh, size, chunks, row_length=64, rows=0, packed=packed)
    indices = make_batches({'a': reader.sources[0]}, {'a': 1.0}, 0, size)
    local = make_local_batches(indices, reader, layout, mesh)[step]
    *batch, source, _ = place_batch(local, mesh, layout)
    assert source.shape == ()
    assert int(source) == 0
    assert source.sharding.is_fully_replicated
    assert batch[0].shape == (chunks, layout.parts * layout.rows, 64)
    pairs_per_chunk = -(-size // (chunks * layout.parts)) * layout.parts
    assert batch[3].shape == batch[4].shape[:3] == (chunks, pairs_per_chunk, 4)
    assert batch[4].shape[3:] == (2,)
    found = []
    parts = {}
    for shards in zip(*(array.addressable_shards for array in batch), strict=True):
        assert len({shard.device for shard in shards}) == 1
        parts[shards[3].index[1].start or 0] = [np.asarray(shard.data) for shard in shards]
    assert len(parts) == layout.parts == len(local)
    for start in sorted(parts):
        found += unpack(parts[start], layout)
    for array in batch:
        assert array.sharding.spec == jax.P(None, BATCH)
        assert array.dtype == np.int32
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
def test_pairs_of_a_step_do_not_depend_on_the_layout(reader, sizes, chunks, packed):
    for step in (0, 7, 30):
        chosen = make_batches({'a': reader.sources[0]}, {'a': 1.0}, 0, 16)[step].pairs
        found = read_step_from_devices(reader, sizes, chunks, step, packed=packed)
        assert sorted(found) == sorted(expected(reader, int(i)) for i in chosen)


@pytest.mark.parametrize(
    ('sizes', 'chunks', 'size'),
    [((8, 1, 1), 1, 13), ((2, 2, 2), 3, 14), ((1, 8, 1), 2, 17), ((1, 1, 8), 4, 7)],
)
def test_batch_of_any_size_fits_any_mesh(reader, sizes, chunks, size):
    """The last groups are padded with pairs without tokens and content ids."""
    chosen = make_batches({'a': reader.sources[0]}, {'a': 1.0}, 0, size)[3].pairs
    found = read_step_from_devices(reader, sizes, chunks, 3, size)
    padding = (*[()] * 4, *[(0, 0)] * 4)
    assert [pair for pair in found if pair != padding] == [expected(reader, int(i)) for i in chosen]
    assert found.count(padding) == len(found) - size > 0


def test_unpacked_texts_have_one_row_each(reader):
    tokens, ids = reader(0, np.arange(16))
    layout = plan_layout(reader, make_mesh(1, 1, 8), 16, 1, row_length=64, rows=0, packed=False)
    assert layout.rows == 16 * 4
    batch = pack_group(tokens, ids, layout)
    assert (batch.positions_JxRxS[:, 0] == 0).all()
    assert (np.diff(batch.segments_JxRxS, axis=1) <= 0).all()


def test_batch_has_the_smallest_row_count_that_fits(reader):
    """Only empty rows are left out; the arrays are otherwise equal."""
    mesh = make_mesh(2, 1, 4)
    indices = make_batches({'a': reader.sources[0]}, {'a': 1.0}, 0, 128)
    one, some = (
        plan_layout(reader, mesh, 128, 2, row_length=64, rows=0, row_choices=choices)
        for choices in (1, 3)
    )
    counts = [*some.smaller_row_counts, some.rows]
    assert one.smaller_row_counts == ()
    assert len(counts) == len(set(counts)) == 3
    assert counts == sorted(counts)
    assert counts[-1] == one.rows
    seen = set()
    for step in range(24):
        whole, short = (
            make_local_batches(indices, reader, layout, mesh)[step] for layout in (one, some)
        )
        (rows,) = {batch.tokens_JxRxS.shape[1] for batch in short.values()}
        needed = max(
            np.flatnonzero(batch.segments_JxRxS.any((0, 2))).max() + 1 for batch in whole.values()
        )
        assert rows == min(count for count in counts if count >= needed)
        seen.add(rows)
        for part, batch in whole.items():
            for field, a, b in zip(batch._fields, batch, short[part], strict=True):
                np.testing.assert_array_equal(a[:, :rows] if field.endswith('RxS') else a, b)
        assert place_batch(short, mesh, some).tokens_JxRxS.shape == (2, 2 * rows, 64)
    assert len(seen) > 1


def test_parts_with_an_agreed_row_count_are_those_of_one_process(reader):
    """Each part alone has the rows that it needs, as on a process of its own."""
    mesh = make_mesh(2, 1, 4)
    layout = plan_layout(reader, mesh, 128, 2, row_length=64, rows=0, row_choices=3)
    indices = make_batches({'a': reader.sources[0]}, {'a': 1.0}, 0, 128)
    data = make_local_batches(indices, reader, layout, mesh)
    whole = [data[step] for step in range(8)]

    def take_part(step: int, part: int) -> Batch:
        batch = whole[step][part]
        used = 1 + int(np.flatnonzero(batch.segments_JxRxS.any((0, 2))).max())
        rows = layout.choose_row_count(used)
        fields = ('tokens_JxRxS', 'segments_JxRxS', 'positions_JxRxS')
        return batch._replace(**{name: getattr(batch, name)[:, :rows] for name in fields})

    grown = 0
    for step in range(8):
        parts = [{part: take_part(step, part)} for part in range(2)]
        rows = [part.tokens_JxRxS.shape[1] for own in parts for part in own.values()]
        grown += min(rows) < max(rows)
        for own in parts:
            (part,) = own
            found = add_rows(own, np.int32(max(rows)))[part]
            for a, b in zip(found, whole[step][part], strict=True):
                np.testing.assert_array_equal(a, b)
    assert grown

    # On one process, the devices find its own row count.
    for a, b in zip(agree_on_rows(iter(whole), mesh), whole, strict=True):
        assert a is b


def test_batch_has_the_index_of_its_source(tokenizer):
    both = PairTokenReader([Pairs(), Pairs()], tokenizer, 24, 32, negatives=0)
    mesh = make_mesh(8, 1, 1)
    layout = plan_layout(both, mesh, 16, 1, row_length=64, rows=0)
    sources = {'a': both.sources[0], 'b': both.sources[1]}
    indices = make_batches(sources, {'a': 1.0, 'b': 1.0}, 0, 16)
    data = make_local_batches(indices, both, layout, mesh)
    found = [int(place_batch(data[step], mesh, layout).source) for step in range(8)]
    assert found == [indices[step].source for step in range(8)]
    assert set(found) == {0, 1}


def test_step_is_the_same_by_index_and_by_iteration(reader):
    mesh = make_mesh(2, 2, 2)
    layout = plan_layout(reader, mesh, 16, 2, row_length=64, rows=0)
    indices = make_batches({'a': reader.sources[0]}, {'a': 1.0}, 0, 16)
    data = make_local_batches(indices, reader, layout, mesh)
    upcoming = iter(
        data[11:].to_iter_dataset(grain.ReadOptions(num_threads=3, prefetch_buffer_size=4))
    )
    for step in range(11, 26):
        for part, batch in next(upcoming).items():
            for a, b in zip(batch, data[step][part], strict=True):
                np.testing.assert_array_equal(a, b)


def test_given_rows_are_used_and_samples_have_text_lengths(reader):
    mesh = make_mesh(2, 2, 2)
    layout = plan_layout(reader, mesh, 16, 2, row_length=64, rows=5)
    assert layout == Layout(parts=4, chunks=2, pairs=2, texts=4, rows=5, row_length=64)
    assert layout.tokens == 4 * 2 * 5 * 64
    lengths = sample_lengths(reader, 0, 50)
    assert lengths.shape == (50, 4)
    assert lengths[0].tolist() == [len(text) for text in expected(reader, 0)[:4]]
    assert lengths[-1].tolist() == [len(text) for text in expected(reader, 199)[:4]]


def test_more_hard_negatives_than_any_pair_has_are_refused():
    sources = {'a': Pairs(10), 'b': Pairs(2)}  # some pairs have 3
    check_negatives(sources, 3)
    with pytest.raises(
        UserError,
        match=r'^data\.negatives=4: pairs of data\.sources\.a, data\.sources\.b have at most 3: '
        r'lower it',
    ):
        check_negatives(sources, 4)
    unread = Pairs(10)
    check_negatives({'a': unread}, 0)
    assert not unread.reads


def test_batch_with_fewer_pairs_than_chunks_is_refused(reader):
    with pytest.raises(
        UserError, match=r'train.batch_pairs=7 is less than .* = 4 times train.encode_chunks=2'
    ):
        plan_layout(reader, make_mesh(2, 2, 2), 7, 2, row_length=64, rows=0)
