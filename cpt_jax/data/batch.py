"""A batch: the tokens of a fixed number of pairs, packed into a fixed number of rows per device.

NOTE on indices. A step's batch is `batch_pairs` pairs. They are split into I x J groups: I batch
shards of the mesh (data x fsdp) times J chunks per shard, which are encoded one after the other. A
group's pairs are packed into the group's own rows, and EOS indices are positions in the rows of the
group, so no device needs rows of another. The pairs of a step do not depend on I and J. If I x J
does not divide the batch, the last groups are padded with empty pairs, which the loss ignores;
every batch size works on every mesh.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cpt_jax.data.equality import IDS_PER_TEXT, LATEST_RULE
from cpt_jax.data.mixture import BatchIndex
from cpt_jax.data.packing import pack_pairs, propose_rows, propose_smaller_row_counts
from cpt_jax.data.token_reader import NO_PAIR, ReadPair, TokenReader, sample_lengths
from cpt_jax.loss.targets import Targets, TargetSizes
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import BATCH, count_batch_shards

# An array on the host or on devices, or only its shape, dtype and sharding.
A = TypeVar('A', np.ndarray, jax.Array, jax.ShapeDtypeStruct)


class Batch(NamedTuple, Generic[A]):
    """The int32 arrays of a step: J chunks, each of R rows and B pairs with T texts.

    Encoder documents the first four arrays, InfoNCE the ids.

    Attributes:
      tokens_JxRxS: token ids.
      segments_JxRxS: number of the text in the group, from 1; 0 is padding.
      positions_JxRxS: position of each token in its text.
      eos_JxBxT: index of each text's last token in the group's flattened rows.
      ids_JxBxTxZ: ids by which each text is compared with others (data/equality.py); 0: there is no
        text, or its pair did not fit.
      source: index of the source that all pairs come from, a scalar.
      targets: what the losses compare the vectors with, float32[J, B, ...] each
        (loss/targets.py).
    """

    tokens_JxRxS: A
    segments_JxRxS: A
    positions_JxRxS: A
    eos_JxBxT: A
    ids_JxBxTxZ: A
    source: A | np.int32 = np.int32(0)
    targets: Targets = Targets()


@dataclasses.dataclass(frozen=True)
class Layout:
    """The shape of a batch on devices: I x J groups, each of `pairs` pairs in `rows` rows.

    Attributes:
      parts: I, number of batch shards of the mesh.
      chunks: J, number of chunks per shard.
      pairs: number of pairs per group.
      texts: number of texts per pair.
      rows: maximum number of rows per group.
      row_length: number of columns of a row.
      packed: whether texts share rows; otherwise each text has its own row.
      smaller_row_counts: row counts below `rows`, ascending. A batch has the smallest count that
        fits it; each count is compiled as a separate program.
      ids_per_text: number of ids by which a text is compared with others.
      targets: sizes of the targets.
    """

    parts: int
    chunks: int
    pairs: int
    texts: int
    rows: int
    row_length: int
    packed: bool = True
    smaller_row_counts: tuple[int, ...] = ()
    ids_per_text: int = IDS_PER_TEXT[LATEST_RULE]
    targets: TargetSizes = TargetSizes()

    @property
    def tokens(self) -> int:
        """Maximum number of columns computed in a step, including padding."""
        return self.parts * self.chunks * self.rows * self.row_length

    def choose_row_count(self, rows: int) -> int:
        """Returns the smallest of the layout's row counts that is at least `rows`."""
        return next(count for count in (*self.smaller_row_counts, self.rows) if count >= rows)


MAX_TOKENS = 2**31 - 1  # tokens of a batch, padding included: indices are int32


def plan_layout(
    reader: TokenReader,
    mesh: jax.sharding.Mesh,
    batch_pairs: int,
    chunks: int,
    row_length: int,
    rows: int,
    packed: bool = True,
    row_choices: int = 1,
    sample: int = 4096,
) -> Layout:
    """Returns the layout of a run's batches.

    Args:
      reader: reader of the pairs.
      mesh: devices of the run.
      batch_pairs: number of pairs in a batch.
      chunks: number of chunks per batch shard.
      row_length: number of columns of a row.
      rows: number of rows per group. 0: chosen from a sample of every source.
      packed: whether texts share rows.
      row_choices: maximum number of row counts to choose from for each batch.
      sample: number of pairs to sample from each source.

    Raises:
      UserError: the batch has fewer pairs than there are chunks on all batch shards, or too many
        tokens.
    """
    parts = count_batch_shards(mesh)
    if batch_pairs < parts * chunks:
        raise UserError(
            f'train.batch_pairs={batch_pairs} is less than mesh.data x mesh.fsdp = {parts} times '
            f'train.encode_chunks={chunks}: some devices would have no pair; raise '
            f'train.batch_pairs or lower one of the others'
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
        needed = np.concatenate([needed_I for _, needed_I in proposed])
        smaller = propose_smaller_row_counts(needed, rows, parts * chunks, row_choices)
    layout = Layout(
        parts,
        chunks,
        pairs,
        reader.texts_per_pair,
        rows,
        row_length,
        packed,
        smaller,
        reader.ids_per_text,
        reader.targets.sizes if reader.targets else TargetSizes(),
    )
    if layout.tokens > MAX_TOKENS:
        raise UserError(
            f'data.row_length={row_length} with {rows:,} rows per device and chunk is '
            f'{layout.tokens:,} tokens per batch, more than {MAX_TOKENS:,}: lower data.row_length, '
            f'data.rows or train.batch_pairs'
        )
    return layout


def pack_group(
    tokens: Sequence[Sequence[np.ndarray]], ids_bxTxZ: np.ndarray, layout: Layout
) -> Batch[np.ndarray]:
    """Returns the rows of one group.

    A pair that does not fit gets ids of 0: the loss ignores it, and a metric counts it.

    Args:
      tokens: int32 ids of the T texts of each of b pairs.
      ids_bxTxZ: int32 ids by which texts are compared.
      layout: shape of the batch.
    """
    texts = [text for pair in tokens for text in pair]
    lengths_bxT = np.array([len(text) for text in texts]).reshape(ids_bxTxZ.shape[:2])
    if layout.packed:
        starts_bxT = pack_pairs(lengths_bxT, layout.rows, layout.row_length)
    else:
        starts_bxT = np.arange(len(texts)).reshape(lengths_bxT.shape) * layout.row_length
    ids_bxTxZ = ids_bxTxZ * (starts_bxT >= 0)[..., None]
    placed_bxT = (starts_bxT >= 0) & (lengths_bxT > 0)
    eos_bxT = np.where(placed_bxT, starts_bxT + lengths_bxT - 1, 0)

    # The P placed texts have N tokens in total. Token n has index column_N[n] in its text and index
    # cell_N[n] in the flattened rows:
    #
    #   text         0 0 0 | 1 1 | 2 2 2 2       start of text 0, 1, 2 in the rows: 0, 8, 3
    #   column_N     0 1 2   0 1   0 1 2 3
    #   cell_N       0 1 2   8 9   3 4 5 6
    text_P = np.flatnonzero(placed_bxT)
    length_P = lengths_bxT.reshape(-1)[text_P]
    start_P = starts_bxT.reshape(-1)[text_P]
    column_N = np.arange(length_P.sum()) - np.repeat(np.cumsum(length_P) - length_P, length_P)
    cell_N = np.repeat(start_P, length_P) + column_N
    token_N = np.concatenate([np.zeros(0, np.int32), *(texts[text] for text in text_P)])
    segment_N = np.repeat(text_P + 1, length_P)

    def fill_rows(value_N: np.ndarray) -> np.ndarray:
        rows_RxS = np.zeros((layout.rows, layout.row_length), np.int32)
        rows_RxS.reshape(-1)[cell_N] = value_N
        return rows_RxS

    return Batch(
        fill_rows(token_N),
        fill_rows(segment_N),
        fill_rows(column_N),
        eos_bxT.astype(np.int32),
        ids_bxTxZ.astype(np.int32),
    )


def count_used_rows(group: Batch[np.ndarray]) -> int:
    """Returns the number of rows up to the last one with a text; `pack` fills rows in order."""
    return 1 + int(np.flatnonzero(group.segments_JxRxS[:, 0]).max(initial=0))


def make_local_batches(
    indices: grain.MapDataset, reader: TokenReader, layout: Layout, mesh: jax.sharding.Mesh
) -> grain.MapDataset:
    """Returns a data set whose element [step] is {part: Batch of numpy arrays [J, ...]}, for the
    batch shards (parts) of this process.

    The number of rows is the smallest that fits these parts; those of other processes may need more
    (training/agreed_rows.py).
    """
    shape = (layout.parts * layout.rows, layout.row_length)
    slices = NamedSharding(mesh, P(BATCH)).addressable_devices_indices_map(shape)
    own_parts = sorted({(index[0].start or 0) // layout.rows for index in slices.values() if index})
    padded_pairs = layout.parts * layout.chunks * layout.pairs

    def build(index: BatchIndex) -> Mapping[int, Batch[np.ndarray]]:
        padding = padded_pairs - len(index.pairs)
        padded = np.pad(index.pairs, (0, padding), constant_values=NO_PAIR)
        pairs_IxJxb = padded.reshape(layout.parts, layout.chunks, layout.pairs)
        pairs = reader.read(index.source, pairs_IxJxb[own_parts].reshape(-1))
        groups = [
            _read_group(pairs[k : k + layout.pairs], reader, layout)
            for k in range(0, len(pairs), layout.pairs)
        ]
        rows = layout.choose_row_count(max(count_used_rows(group) for group in groups))
        groups = [_take_first_rows(group, rows) for group in groups]
        chunked = [groups[k : k + layout.chunks] for k in range(0, len(groups), layout.chunks)]
        return {
            part: _stack_chunks(chunks, np.int32(index.source))
            for part, chunks in zip(own_parts, chunked, strict=True)
        }

    return indices.map(build)


def _read_group(
    pairs: Sequence[ReadPair], reader: TokenReader, layout: Layout
) -> Batch[np.ndarray]:
    """Returns the rows and the targets of one group."""
    ids_bxTxZ = np.array([pair.ids_TxZ for pair in pairs], np.int32)
    group = pack_group([pair.tokens for pair in pairs], ids_bxTxZ, layout)
    if reader.targets is None:
        return group
    return group._replace(targets=reader.targets.collect([pair.targets for pair in pairs]))


def _take_first_rows(group: Batch[np.ndarray], rows: int) -> Batch[np.ndarray]:
    return group._replace(
        tokens_JxRxS=group.tokens_JxRxS[:rows],
        segments_JxRxS=group.segments_JxRxS[:rows],
        positions_JxRxS=group.positions_JxRxS[:rows],
    )


def _stack_chunks(chunks: Sequence[Batch[np.ndarray]], source: np.int32) -> Batch[np.ndarray]:
    return Batch(
        np.stack([chunk.tokens_JxRxS for chunk in chunks]),
        np.stack([chunk.segments_JxRxS for chunk in chunks]),
        np.stack([chunk.positions_JxRxS for chunk in chunks]),
        np.stack([chunk.eos_JxBxT for chunk in chunks]),
        np.stack([chunk.ids_JxBxTxZ for chunk in chunks]),
        source,
        jax.tree.map(lambda *arrays: np.stack(arrays), *(chunk.targets for chunk in chunks)),
    )


def place_batch(
    local: Mapping[int, Batch[np.ndarray]], mesh: jax.sharding.Mesh, layout: Layout
) -> Batch[jax.Array]:
    """Returns this process's parts as global arrays over all processes.

    Chunks are not sharded; rows and pairs are sharded over data and fsdp.

    Args:
      local: batches of this process by part, as `make_local_batches` makes them.
      mesh: devices of the run.
      layout: shape of the batch.
    """

    def assemble_parts(*arrays: np.ndarray) -> jax.Array:
        chunks, size, *rest = arrays[0].shape
        sharding = NamedSharding(mesh, P(None, BATCH))
        by_part = dict(zip(local, arrays, strict=True))

        def read(index):
            return by_part[(index[1].start or 0) // size]

        return jax.make_array_from_callback((chunks, size * layout.parts, *rest), sharding, read)

    def assemble(field: str) -> jax.Array:
        return assemble_parts(*(getattr(part, field) for part in local.values()))

    source = next(iter(local.values())).source
    return Batch(
        assemble('tokens_JxRxS'),
        assemble('segments_JxRxS'),
        assemble('positions_JxRxS'),
        assemble('eos_JxBxT'),
        assemble('ids_JxBxTxZ'),
        jax.make_array_from_callback((), NamedSharding(mesh, P()), lambda _: np.asarray(source)),
        jax.tree.map(assemble_parts, *(part.targets for part in local.values())),
    )


def make_abstract_batch(layout: Layout, mesh: jax.sharding.Mesh) -> Batch[jax.ShapeDtypeStruct]:
    """Returns shapes, dtypes and shardings of the `place_batch` result with `layout.rows` rows."""

    def array(count: int, *rest: int, dtype: type = np.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(
            (layout.chunks, layout.parts * count, *rest),
            dtype,
            sharding=NamedSharding(mesh, P(None, BATCH)),
        )

    rows = array(layout.rows, layout.row_length)
    eos = array(layout.pairs, layout.texts)
    ids = array(layout.pairs, layout.texts, layout.ids_per_text)
    guide, scores, teacher = layout.targets
    pairs, texts, f32 = layout.pairs, layout.texts, np.float32
    targets: Targets = Targets(
        guide=array(pairs, texts, guide, dtype=f32) if guide else None,
        scores=array(pairs, scores, dtype=f32) if scores else None,
        teacher=array(pairs, texts, teacher, dtype=f32) if teacher else None,
    )
    return Batch(
        rows,
        rows,
        rows,
        eos,
        ids,
        jax.ShapeDtypeStruct((), np.int32, sharding=NamedSharding(mesh, P())),
        targets,
    )
