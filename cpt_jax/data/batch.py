"""A batch: the tokens of a fixed number of pairs, packed into a fixed number of rows a device.

NOTE on indices. A step's batch is `batch_pairs` pairs. They are dealt to G x C groups: G parts of the mesh that hold rows of their own
(data x fsdp), and for each part C chunks that are encoded one after the other. A group's pairs are packed into rows of their own, and
an EOS place counts within the group: no device ever needs another's rows. Which pairs a step holds does not depend on G and C. Where
G x C does not divide the batch, the last groups have empty places, which the loss leaves out: any batch goes on any mesh.
"""

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cpt_jax.data.mixture import BatchIndex
from cpt_jax.data.packing import pack_pairs, propose_fewer, propose_rows
from cpt_jax.data.pairs import Pair, Source, content_id, spread_over
from cpt_jax.errors import UserError
from cpt_jax.mesh import BATCH, batch_shards
from cpt_jax.tokenizer import Tokenizer

# In place of the number of a pair: an empty place.
NOTHING = -1


class Batch(NamedTuple):
    """Arrays int32; C chunks lead, then R rows or B pairs of a chunk. See Encoder and InfoNCE for what they hold.

    `source` is the number of the source that all pairs come from, a scalar.
    """

    tokens_CxRxS: jax.Array | np.ndarray
    segments_CxRxS: jax.Array | np.ndarray
    positions_CxRxS: jax.Array | np.ndarray
    eos_CxBxT: jax.Array | np.ndarray
    ids_CxBxT: jax.Array | np.ndarray
    source: jax.Array | np.ndarray = np.int32(0)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a batch lies on devices: G parts x C chunks, each of `pairs` pairs of `texts` texts in `rows` rows of `row_length` columns.

    Attributes:
      packed: texts share rows; otherwise each has a row of its own.
      fewer: row counts below `rows`, rising. A batch takes the fewest that hold it; each count is a program of its own.
    """

    parts: int
    chunks: int
    pairs: int
    texts: int
    rows: int
    row_length: int
    packed: bool = True
    fewer: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """Columns computed in a step at most, padding included."""
        return self.parts * self.chunks * self.rows * self.row_length

    def enough(self, rows: int) -> int:
        """The fewest rows of those to choose from that hold so many."""
        return next(count for count in (*self.fewer, self.rows) if count >= rows)


class Tokens(ABC):
    """The tokens of what a batch consists of, by source and number: reads, tokenises and remembers them.

    Attributes:
      sources: where pairs come from, in the order of the mixture.
      texts: T, of a pair.
      tokens, seconds: read so far, and spent on tokenising.
    """

    REMEMBERED = 1 << 18  # pairs; 320 MB at 150 tokens a pair

    def __init__(self, sources: Sequence[Source], tokenizer: Tokenizer, texts: int):
        self.sources, self.tokenizer, self.texts = sources, tokenizer, texts
        nothing = [np.zeros(0, np.int32)] * texts, [0] * texts
        self._known: dict[tuple[int, int], tuple[list[np.ndarray], list[int]]] = {(i, NOTHING): nothing for i in range(len(sources))}
        self.tokens, self.seconds = 0, 0.0

    @abstractmethod
    def encode(self, pairs: Sequence[Pair]) -> Iterator[tuple[list[np.ndarray], list[int]]]:
        """Tokens and content ids of the T texts of each pair."""

    def __call__(self, source: int, indices: np.ndarray) -> tuple[list[list[np.ndarray]], np.ndarray]:
        """Tokens of the texts of each pair (an empty array where there is none); ids int32[pairs, T].

        A pair of number NOTHING has none.
        """
        keys = [(source, int(index)) for index in indices]
        missing = [key for key in keys if key not in self._known]
        fresh = dict(zip(missing, self._read(missing), strict=True)) if missing else {}
        if len(self._known) < self.REMEMBERED:
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
      max_tokens_x, max_tokens_y: ids of a text at most, its two delimiters included; hard negatives count as y.
      negatives: hard negatives taken from each pair, the first ones; a pair with fewer has gaps.
    """

    def __init__(self, sources: Sequence[Source], tokenizer: Tokenizer, max_tokens_x: int, max_tokens_y: int, negatives: int):
        super().__init__(sources, tokenizer, 2 + negatives)
        self._max_x, self._max_y, self._negatives = max_tokens_x, max_tokens_y, negatives

    def encode(self, pairs: Sequence[Pair]) -> Iterator[tuple[list[np.ndarray], list[int]]]:
        x = self.tokenizer.encode([pair.x for pair in pairs], 'x', self._max_x)
        y = self.tokenizer.encode([pair.y for pair in pairs], 'y', self._max_y)
        hard = iter(self.tokenizer.encode([text for pair in pairs for text in pair.negatives[: self._negatives]], 'y', self._max_y))
        for pair, x_tokens, y_tokens in zip(pairs, x, y, strict=True):
            texts = [pair.x, pair.y, *pair.negatives[: self._negatives]]
            gaps = self.texts - len(texts)
            tokens = [x_tokens, y_tokens, *[next(hard) for _ in texts[2:]], *[np.zeros(0, np.int32)] * gaps]
            yield tokens, [content_id(text) for text in texts] + [0] * gaps


class DocumentTokens(Tokens):
    """The tokens of texts for a language model: one text in place of each pair.

    Args:
      sources: of texts, the x of its pairs (data/documents.py).
      max_tokens: ids of a text at most; the rest of a longer one is left out.
    """

    def __init__(self, sources: Sequence[Source], tokenizer: Tokenizer, max_tokens: int):
        super().__init__(sources, tokenizer, texts=1)
        self._max_tokens = max_tokens

    def encode(self, pairs: Sequence[Pair]) -> Iterator[tuple[list[np.ndarray], list[int]]]:
        texts = [pair.x for pair in pairs]
        for text, tokens in zip(texts, self.tokenizer.encode_language(texts, self._max_tokens), strict=True):
            yield [tokens], [content_id(text)]


def plan_layout(
    texts: Tokens,
    mesh: jax.sharding.Mesh,
    batch_pairs: int,
    chunks: int,
    row_length: int,
    rows: int,
    packed: bool = True,
    row_choices: int = 1,
    sample: int = 4096,
) -> Layout:
    """The layout of a run's batches; with `rows` 0, as many as a sample of every source shows to be needed.

    Only a process that sees all pairs of a batch knows what the whole batch needs: of several, all always take the most rows.

    Raises:
      UserError: there are fewer pairs than chunks on all parts of the mesh.
    """
    parts = batch_shards(mesh)
    if batch_pairs < parts * chunks:
        raise UserError(
            f'train.batch_pairs={batch_pairs} is less than mesh.data x mesh.fsdp = {parts} times train.encode_chunks={chunks}: '
            'some devices would have no pair at all'
        )
    pairs, fewer = -(-batch_pairs // (parts * chunks)), ()
    if not packed:
        rows = pairs * texts.texts
    elif not rows:
        proposed = [propose_rows(sample_lengths(texts, source, sample), pairs, row_length) for source in range(len(texts.sources))]
        rows = max(most for most, _ in proposed)
        needed = np.concatenate([needed_G for _, needed_G in proposed])
        fewer = propose_fewer(needed, rows, parts * chunks, row_choices) if jax.process_count() == 1 else ()
    return Layout(parts, chunks, pairs, texts.texts, rows, row_length, packed, fewer)


def sample_lengths(texts: Tokens, source: int, sample: int) -> np.ndarray:
    """int[P, T]: tokens of the texts of up to `sample` pairs, spread evenly over a source."""
    tokens, _ = texts(source, spread_over(len(texts.sources[source]), sample))
    return np.array([[len(text) for text in pair] for pair in tokens])


def pack_group(tokens: Sequence[Sequence[np.ndarray]], ids_bxT: np.ndarray, layout: Layout) -> Batch:
    """Lays one group out in rows. A pair that does not fit gets ids of 0: the loss leaves it out and the metrics count it."""
    flat = [text for pair in tokens for text in pair]
    lengths_bxT = np.array([len(text) for text in flat]).reshape(ids_bxT.shape)
    if layout.packed:
        starts_bxT = pack_pairs(lengths_bxT, layout.rows, layout.row_length)
    else:
        starts_bxT = np.arange(len(flat)).reshape(ids_bxT.shape) * layout.row_length
    ids_bxT = ids_bxT * (starts_bxT >= 0)
    placed_bxT = (starts_bxT >= 0) & (lengths_bxT > 0)
    eos_bxT = np.where(placed_bxT, starts_bxT + lengths_bxT - 1, 0)

    placed = np.flatnonzero(placed_bxT)
    lengths, starts = lengths_bxT.reshape(-1)[placed], starts_bxT.reshape(-1)[placed]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    where = np.repeat(starts, lengths) + within
    values = np.concatenate([np.zeros(0, np.int32), *(flat[text] for text in placed)]), np.repeat(placed + 1, lengths), within
    rows_RxS = np.zeros((3, layout.rows, layout.row_length), np.int32)
    for row, value in zip(rows_RxS.reshape(3, -1), values, strict=True):
        row[where] = value
    return Batch(*rows_RxS, eos_bxT.astype(np.int32), ids_bxT.astype(np.int32))


def rows_taken(group: Batch) -> int:
    """Rows of a group up to the last one that holds a text; `pack` takes them in turn."""
    return 1 + int(np.flatnonzero(group.segments_CxRxS[:, 0]).max(initial=0))


def local_batches(indices: grain.MapDataset, texts: Tokens, layout: Layout, mesh: jax.sharding.Mesh) -> grain.MapDataset:
    """[step] -> {part: Batch of numpy arrays [C, ...]} for those parts of the mesh that this process holds."""
    shape = (layout.parts * layout.rows, layout.row_length)
    places = NamedSharding(mesh, P(BATCH)).addressable_devices_indices_map(shape)
    mine = sorted({(place[0].start or 0) // layout.rows for place in places.values()})
    places_a_step = layout.parts * layout.chunks * layout.pairs

    def build(index: BatchIndex) -> Mapping[int, Batch]:
        padded = np.pad(index.pairs, (0, places_a_step - len(index.pairs)), constant_values=NOTHING)
        pairs_GxCxb = padded.reshape(layout.parts, layout.chunks, layout.pairs)
        tokens, ids = texts(index.source, pairs_GxCxb[mine].reshape(-1))
        groups = [pack_group(tokens[k : k + layout.pairs], ids[k : k + layout.pairs], layout) for k in range(0, len(tokens), layout.pairs)]
        rows = layout.enough(max(rows_taken(group) for group in groups))
        groups = [Batch(*(array[:rows] for array in group[:3]), *group[3:]) for group in groups]
        chunked = [groups[k : k + layout.chunks] for k in range(0, len(groups), layout.chunks)]
        source = np.int32(index.source)
        stacked = {part: Batch(*map(np.stack, zip(*chunks, strict=True))) for part, chunks in zip(mine, chunked, strict=True)}
        return {part: batch._replace(source=source) for part, batch in stacked.items()}

    return indices.map(build)


def place(local: Mapping[int, Batch], mesh: jax.sharding.Mesh, layout: Layout) -> Batch:
    """This process's parts as arrays over all processes: chunks whole, rows and pairs over data and fsdp."""

    def assemble(field: int) -> jax.Array:
        chunks, size, last = next(iter(local.values()))[field].shape
        sharding = NamedSharding(mesh, P(None, BATCH))
        read = lambda index: local[(index[1].start or 0) // size][field]  # noqa: E731
        return jax.make_array_from_callback((chunks, size * layout.parts, last), sharding, read)

    source = next(iter(local.values())).source
    everywhere = jax.make_array_from_callback((), NamedSharding(mesh, P()), lambda _: source)
    return Batch(*map(assemble, range(len(Batch._fields) - 1)), everywhere)


def abstract_batch(layout: Layout, mesh: jax.sharding.Mesh) -> Batch:
    """What `place` gives: shapes, dtypes and shardings, for batches of the most rows."""

    def array(count: int, last: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((layout.chunks, layout.parts * count, last), np.int32, sharding=NamedSharding(mesh, P(None, BATCH)))

    rows, texts = array(layout.rows, layout.row_length), array(layout.pairs, layout.texts)
    return Batch(rows, rows, rows, texts, texts, jax.ShapeDtypeStruct((), np.int32, sharding=NamedSharding(mesh, P())))
