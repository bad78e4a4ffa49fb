"""A batch: the tokens of a fixed number of pairs, packed into a fixed number of rows a device.

NOTE on indices. A step's batch is `batch_pairs` pairs. They are dealt to G x C groups: G parts of
the mesh that hold rows of their own (data x fsdp), and for each part C chunks that are encoded one
after the other. A group's pairs are packed into rows of their own, and an EOS place counts within
the group: no device ever needs another's rows. Which pairs a step holds does not depend on G and C.
Where G x C does not divide the batch, the last groups have empty places, which the loss leaves out:
any batch goes on any mesh.
"""

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cpt_jax.data.mixture import BatchIndex
from cpt_jax.data.packing import pack_pairs, propose_rows, propose_smaller
from cpt_jax.data.pairs import Pair, Source, content_id, spread_over
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import BATCH, batch_shards
from cpt_jax.text.prompt_tokenizer import PromptTokenizer
from cpt_jax.text.tokenizer import Tokenizer

# In place of the number of a pair: an empty place.
NOTHING = -1


# On the host, on devices, or a shape and a sharding alone.
A = TypeVar('A', np.ndarray, jax.Array, jax.ShapeDtypeStruct)


class Batch(NamedTuple, Generic[A]):
    """Arrays int32; C chunks lead, then R rows or B pairs of a chunk. See Encoder and InfoNCE for
    what they hold.

    `source` is the index of the source that all pairs come from, a scalar.
    """

    tokens_CxRxS: A
    segments_CxRxS: A
    positions_CxRxS: A
    eos_CxBxT: A
    ids_CxBxT: A
    source: A | np.int32 = np.int32(0)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a batch lies on devices: G parts x C chunks, each of `pairs` pairs of `texts` texts in
    `rows` rows of `row_length` columns.

    Attributes:
      packed: texts share rows; otherwise each has a row of its own.
      smaller_row_counts: row counts below `rows`, ascending. A batch takes the smallest that holds
        it; each count is a program of its own.
    """

    parts: int
    chunks: int
    pairs: int
    texts: int
    rows: int
    row_length: int
    packed: bool = True
    smaller_row_counts: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """Columns computed in a step at most, padding included."""
        return self.parts * self.chunks * self.rows * self.row_length

    def smallest_row_count_for(self, rows: int) -> int:
        """The smallest of the layout's row counts that is at least `rows`."""
        return next(count for count in (*self.smaller_row_counts, self.rows) if count >= rows)


class Tokens(ABC):
    """The tokens of what a batch consists of, by source and number: reads, tokenises and remembers
    them.

    Attributes:
      sources: where pairs come from, in the order of the mixture.
      texts_per_pair: T, texts of a pair.
      tokens: tokens read so far.
      seconds: time spent on tokenising so far.
    """

    CACHE_PAIRS = 1 << 18  # pairs; 320 MB at 150 tokens a pair

    def __init__(
        self,
        sources: Sequence[Source],
        tokenizer: Tokenizer | PromptTokenizer,
        texts_per_pair: int,
    ):
        self.sources, self.tokenizer, self.texts_per_pair = sources, tokenizer, texts_per_pair
        nothing = [np.zeros(0, np.int32)] * texts_per_pair, [0] * texts_per_pair
        self._known: dict[tuple[int, int], tuple[list[np.ndarray], list[int]]] = {
            (i, NOTHING): nothing for i in range(len(sources))
        }
        self.tokens, self.seconds = 0, 0.0

    @abstractmethod
    def encode(self, pairs: Sequence[Pair]) -> Iterator[tuple[list[np.ndarray], list[int]]]:
        """Tokens and content ids of the T texts of each pair."""

    def __call__(
        self, source: int, indices: np.ndarray
    ) -> tuple[list[list[np.ndarray]], np.ndarray]:
        """Tokens of the texts of each pair (an empty array where there is none); ids int32[pairs,
        T].

        A pair of number NOTHING has none.
        """
        keys = [(source, int(index)) for index in indices]
        missing = [key for key in keys if key not in self._known]
        fresh = dict(zip(missing, self._read(missing), strict=True)) if missing else {}
        if len(self._known) < self.CACHE_PAIRS:
            self._known.update(fresh)
        found = [fresh[key] if key in fresh else self._known[key] for key in keys]
        return [tokens for tokens, _ in found], np.array([ids for _, ids in found], np.int32)

    def _read(self, keys: list[tuple[int, int]]) -> list[tuple[list[np.ndarray], list[int]]]:
        pairs = [self.sources[source][index] for source, index in keys]
        start = time.perf_counter()
        found = list(self.encode(pairs))
        self.seconds += time.perf_counter() - start
        self.tokens += sum(len(text) for tokens, _ in found for text in tokens)
        return found


class Texts(Tokens):
    """The tokens of x, y and the hard negatives of pairs, between their delimiters.

    Args:
      max_tokens_x, max_tokens_y: ids of a text at most, its two delimiters included; hard negatives
        count as y.
      negatives: hard negatives taken from each pair, the first ones; a pair with fewer has gaps.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tokenizer: Tokenizer | PromptTokenizer,
        max_tokens_x: int,
        max_tokens_y: int,
        negatives: int,
    ):
        super().__init__(sources, tokenizer, 2 + negatives)
        self._max_x, self._max_y, self._negatives = max_tokens_x, max_tokens_y, negatives

    def encode(self, pairs: Sequence[Pair]) -> Iterator[tuple[list[np.ndarray], list[int]]]:
        x = self.tokenizer.encode([pair.x for pair in pairs], 'x', self._max_x)
        y = self.tokenizer.encode([pair.y for pair in pairs], 'y', self._max_y)
        hard = iter(
            self.tokenizer.encode(
                [text for pair in pairs for text in pair.negatives[: self._negatives]],
                'y',
                self._max_y,
            )
        )
        for pair, x_tokens, y_tokens in zip(pairs, x, y, strict=True):
            texts = [pair.x, pair.y, *pair.negatives[: self._negatives]]
            gaps = self.texts_per_pair - len(texts)
            tokens = [
                x_tokens,
                y_tokens,
                *[next(hard) for _ in texts[2:]],
                *[np.zeros(0, np.int32)] * gaps,
            ]
            yield tokens, [content_id(text) for text in texts] + [0] * gaps


class DocumentTokens(Tokens):
    """The tokens of texts for a language model: one text in place of each pair.

    Args:
      sources: of texts, the x of its pairs (data/sources/documents.py).
      max_tokens: ids of a text at most; the rest of a longer one is left out.
    """

    def __init__(self, sources: Sequence[Source], tokenizer: Tokenizer, max_tokens: int):
        super().__init__(sources, tokenizer, texts_per_pair=1)
        self._encode = tokenizer.encode_language
        self._max_tokens = max_tokens

    def encode(self, pairs: Sequence[Pair]) -> Iterator[tuple[list[np.ndarray], list[int]]]:
        texts = [pair.x for pair in pairs]
        encoded = self._encode(texts, self._max_tokens)
        for text, tokens in zip(texts, encoded, strict=True):
            yield [tokens], [content_id(text)]


def plan_layout(
    reader: Tokens,
    mesh: jax.sharding.Mesh,
    batch_pairs: int,
    chunks: int,
    row_length: int,
    rows: int,
    packed: bool = True,
    row_choices: int = 1,
    sample: int = 4096,
) -> Layout:
    """The layout of a run's batches; with `rows` 0, as many as a sample of every source shows to be
    needed.

    Only a process that sees all pairs of a batch knows what the whole batch needs: of several, all
    always take the most rows.

    Raises:
      UserError: there are fewer pairs than chunks on all parts of the mesh.
    """
    parts = batch_shards(mesh)
    if batch_pairs < parts * chunks:
        raise UserError(
            f'train.batch_pairs={batch_pairs} is less than mesh.data x mesh.fsdp = {parts} times '
            f'train.encode_chunks={chunks}: some devices would have no pair at all'
        )
    pairs = -(-batch_pairs // (parts * chunks))
    smaller: tuple[int, ...] = ()
    if not packed:
        rows = pairs * reader.texts_per_pair
    elif not rows:
        proposed = [
            propose_rows(sample_lengths(reader, source, sample), pairs, row_length)
            for source in range(len(reader.sources))
        ]
        rows = max(most for most, _ in proposed)
        needed = np.concatenate([needed_G for _, needed_G in proposed])
        if jax.process_count() == 1:
            smaller = propose_smaller(needed, rows, parts * chunks, row_choices)
    return Layout(parts, chunks, pairs, reader.texts_per_pair, rows, row_length, packed, smaller)


def sample_lengths(reader: Tokens, source: int, sample: int) -> np.ndarray:
    """int[P, T]: tokens of the texts of up to `sample` pairs, spread evenly over a source."""
    tokens, _ = reader(source, spread_over(len(reader.sources[source]), sample))
    return np.array([[len(text) for text in pair] for pair in tokens])


def pack_group(
    tokens: Sequence[Sequence[np.ndarray]], ids_bxT: np.ndarray, layout: Layout
) -> Batch[np.ndarray]:
    """Lays one group out in rows. A pair that does not fit gets ids of 0: the loss leaves it out
    and the metrics count it.
    """
    flat = [text for pair in tokens for text in pair]
    lengths_bxT = np.array([len(text) for text in flat]).reshape(ids_bxT.shape)
    if layout.packed:
        starts_bxT = pack_pairs(lengths_bxT, layout.rows, layout.row_length)
    else:
        starts_bxT = np.arange(len(flat)).reshape(ids_bxT.shape) * layout.row_length
    ids_bxT = ids_bxT * (starts_bxT >= 0)
    placed_bxT = (starts_bxT >= 0) & (lengths_bxT > 0)
    eos_bxT = np.where(placed_bxT, starts_bxT + lengths_bxT - 1, 0)

    # The P texts hold N tokens in all. Token n is number column_N[n] of its text, and lies at
    # cell_N[n] of the flattened rows:
    #
    #   text         0 0 0 | 1 1 | 2 2 2 2       start of text 0, 1, 2 in the rows: 0, 8, 3
    #   column_N     0 1 2   0 1   0 1 2 3
    #   cell_N       0 1 2   8 9   3 4 5 6
    text_P = np.flatnonzero(placed_bxT)
    length_P, start_P = lengths_bxT.reshape(-1)[text_P], starts_bxT.reshape(-1)[text_P]
    column_N = np.arange(length_P.sum()) - np.repeat(np.cumsum(length_P) - length_P, length_P)
    cell_N = np.repeat(start_P, length_P) + column_N
    token_N = np.concatenate([np.zeros(0, np.int32), *(flat[text] for text in text_P)])
    segment_N = np.repeat(text_P + 1, length_P)

    def in_rows(value_N: np.ndarray) -> np.ndarray:
        rows_RxS = np.zeros((layout.rows, layout.row_length), np.int32)
        rows_RxS.reshape(-1)[cell_N] = value_N
        return rows_RxS

    return Batch(
        in_rows(token_N),
        in_rows(segment_N),
        in_rows(column_N),
        eos_bxT.astype(np.int32),
        ids_bxT.astype(np.int32),
    )


def rows_taken(group: Batch[np.ndarray]) -> int:
    """Rows of a group up to the last one that holds a text; `pack` takes them in turn."""
    return 1 + int(np.flatnonzero(group.segments_CxRxS[:, 0]).max(initial=0))


def local_batches(
    indices: grain.MapDataset, reader: Tokens, layout: Layout, mesh: jax.sharding.Mesh
) -> grain.MapDataset:
    """[step] -> {part: Batch of numpy arrays [C, ...]} for those parts of the mesh that this
    process holds.
    """
    shape = (layout.parts * layout.rows, layout.row_length)
    places = NamedSharding(mesh, P(BATCH)).addressable_devices_indices_map(shape)
    mine = sorted({(place[0].start or 0) // layout.rows for place in places.values() if place})
    places_a_step = layout.parts * layout.chunks * layout.pairs

    def build(index: BatchIndex) -> Mapping[int, Batch[np.ndarray]]:
        padded = np.pad(index.pairs, (0, places_a_step - len(index.pairs)), constant_values=NOTHING)
        pairs_GxCxb = padded.reshape(layout.parts, layout.chunks, layout.pairs)
        tokens, ids = reader(index.source, pairs_GxCxb[mine].reshape(-1))
        groups = [
            pack_group(tokens[k : k + layout.pairs], ids[k : k + layout.pairs], layout)
            for k in range(0, len(tokens), layout.pairs)
        ]
        rows = layout.smallest_row_count_for(max(rows_taken(group) for group in groups))
        groups = [_first_rows(group, rows) for group in groups]
        chunked = [groups[k : k + layout.chunks] for k in range(0, len(groups), layout.chunks)]
        return {
            part: _stack(chunks, np.int32(index.source))
            for part, chunks in zip(mine, chunked, strict=True)
        }

    return indices.map(build)


def _first_rows(group: Batch[np.ndarray], rows: int) -> Batch[np.ndarray]:
    return group._replace(
        tokens_CxRxS=group.tokens_CxRxS[:rows],
        segments_CxRxS=group.segments_CxRxS[:rows],
        positions_CxRxS=group.positions_CxRxS[:rows],
    )


def _stack(chunks: Sequence[Batch[np.ndarray]], source: np.int32) -> Batch[np.ndarray]:
    return Batch(
        np.stack([chunk.tokens_CxRxS for chunk in chunks]),
        np.stack([chunk.segments_CxRxS for chunk in chunks]),
        np.stack([chunk.positions_CxRxS for chunk in chunks]),
        np.stack([chunk.eos_CxBxT for chunk in chunks]),
        np.stack([chunk.ids_CxBxT for chunk in chunks]),
        source,
    )


def place(
    local: Mapping[int, Batch[np.ndarray]], mesh: jax.sharding.Mesh, layout: Layout
) -> Batch[jax.Array]:
    """This process's parts as arrays over all processes: chunks whole, rows and pairs over data and
    fsdp.
    """

    def assemble(field: str) -> jax.Array:
        chunks, size, last = getattr(next(iter(local.values())), field).shape
        sharding = NamedSharding(mesh, P(None, BATCH))

        def read(index):
            return getattr(local[(index[1].start or 0) // size], field)

        return jax.make_array_from_callback((chunks, size * layout.parts, last), sharding, read)

    source = next(iter(local.values())).source
    return Batch(
        assemble('tokens_CxRxS'),
        assemble('segments_CxRxS'),
        assemble('positions_CxRxS'),
        assemble('eos_CxBxT'),
        assemble('ids_CxBxT'),
        jax.make_array_from_callback((), NamedSharding(mesh, P()), lambda _: np.asarray(source)),
    )


def abstract_batch(layout: Layout, mesh: jax.sharding.Mesh) -> Batch[jax.ShapeDtypeStruct]:
    """What `place` gives: shapes, dtypes and shardings, for batches of the most rows."""

    def array(count: int, last: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(
            (layout.chunks, layout.parts * count, last),
            np.int32,
            sharding=NamedSharding(mesh, P(None, BATCH)),
        )

    rows, texts = array(layout.rows, layout.row_length), array(layout.pairs, layout.texts)
    return Batch(
        rows,
        rows,
        rows,
        texts,
        texts,
        jax.ShapeDtypeStruct((), np.int32, sharding=NamedSharding(mesh, P())),
    )
