"""Encodes a batch chunk by chunk (gradient caching, arXiv 2101.06983)."""

import math
from collections.abc import Callable, Sequence
from typing import cast

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cpt_jax.data.batch import Batch
from cpt_jax.model.dense import Dense
from cpt_jax.model.dropout import make_token_keys
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.parameter import Frozen, gather_once, is_variable
from cpt_jax.model.pooling import normalize
from cpt_jax.runtime.mesh import BATCH

# Token ids, segments, positions and EOS indices of one chunk, as in `Encoder.compute_states`.
Rows = tuple[jax.Array, jax.Array, jax.Array, jax.Array]

# Parameters per device, up to which the gradient is reduced once per step: weights and gradient
# then take 8 GB, in addition to the optimizer state. Larger models reduce the gradient layer by
# layer, which overlaps with the computation.
MAX_PARAMETERS_REDUCED_ONCE = 1_000_000_000


def encode(
    encoder: Encoder, batch: Batch, key: jax.Array | None = None, dense: Sequence[Dense] = ()
) -> jax.Array:
    """Returns float32[B, T, D]: the unit-length embeddings of all texts of a batch.

    The batch is encoded chunk by chunk. The loss sees all embeddings of the batch, whatever the
    number of chunks (gradient caching, arXiv 2101.06983).

    Args:
      encoder: the encoder.
      batch: the global batch, in one or several chunks.
      key: random key for dropout; None disables dropout.
      dense: layers after the pooling; empty for most models.
    """
    if not dense:
        return map_chunks(
            encoder,
            batch,
            key,
            lambda encoder, rows, keys_RxS: encoder(*rows, keys_RxS),
            merge_chunks,
        )
    e_BxTxD = map_chunks(
        encoder,
        batch,
        key,
        lambda encoder, rows, keys_RxS: encoder.compute_states(*rows, keys_RxS),
        merge_chunks,
    )
    for layer in dense:
        e_BxTxD = layer(e_BxTxD)
    return normalize(e_BxTxD)


def map_chunks(
    encoder: Encoder,
    batch: Batch,
    key: jax.Array | None,
    compute: Callable[[Encoder, Rows, jax.Array | None], jax.Array],
    merge: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Applies `compute` to each chunk of a batch and merges the results.

    With several chunks, the activations of only one chunk are in memory at a time; they are
    recomputed in the backward pass. The gradient is that of the whole batch.

    Args:
      encoder: the encoder.
      batch: the global batch, in one or several chunks.
      key: random key for dropout; None disables dropout.
      compute: function of the encoder, the rows of a chunk (as in `Encoder.compute_states`) and
        the random keys of its tokens (None without dropout).
      merge: function of the results of all chunks, stacked along a new first axis. Not called for a
        batch of one chunk.
    """
    chunks = batch.tokens_JxRxS.shape[0]

    def compute_chunk(encoder: Encoder, index: int | jax.Array, rows: Rows) -> jax.Array:
        keys_RxS = None
        if key is not None:
            keys_RxS = make_token_keys(key, compute_text_indices(batch, index, rows[1]), rows[2])
        return compute(encoder, rows, keys_RxS)

    rows = batch[:4]
    if chunks == 1:
        return compute_chunk(encoder, 0, cast(Rows, tuple(array[0] for array in rows)))
    if should_reduce_once(encoder):
        encoder = gather_once(encoder)
    scan_body = jax.checkpoint(
        lambda carry, indexed_rows: (carry, compute_chunk(encoder, *indexed_rows)),
        prevent_cse=False,
    )
    return merge(jax.lax.scan(scan_body, None, (jnp.arange(chunks), rows))[1])


def compute_text_indices(
    batch: Batch, chunk: int | jax.Array, segments_RxS: jax.Array
) -> jax.Array:
    """Returns int32[R, S]: for each token of a chunk, the index of its text in the global batch.

    The index does not depend on the layout (data/batch.py), so neither do dropout masks.
    """
    chunks, pairs, texts = batch.eos_JxBxT.shape
    parts = math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in BATCH)
    rows = segments_RxS.shape[0]
    # Rows are sharded over the parts of the mesh in order: row r belongs to part r // (R / parts).
    # Texts are numbered part by part, within a part chunk by chunk, within a chunk by segment,
    # where segment 0 is padding and segment 1 the first text.
    part_Rx1 = jnp.arange(rows)[:, None] // (rows // parts)
    return (part_Rx1 * chunks + chunk) * (pairs // parts * texts) + segments_RxS - 1


def should_reduce_once(encoder: Encoder) -> bool:
    """Returns whether the gradient of a chunked step is reduced over devices once, after all
    chunks, instead of once for each chunk and layer.

    If so, each device holds the weights and their gradient sharded only over tensor: 8 bytes per
    parameter, for at most MAX_PARAMETERS_REDUCED_ONCE parameters. Frozen weights have no gradient
    and are gathered layer by layer.
    """
    tensor = jax.sharding.get_abstract_mesh().shape['tensor']
    trained = [
        weight
        for weight in jax.tree.leaves(encoder, is_leaf=is_variable)
        if not isinstance(weight, Frozen)
    ]
    return sum(weight[...].size for weight in trained) <= MAX_PARAMETERS_REDUCED_ONCE * tensor


def merge_chunks(a_JxBx: jax.Array) -> jax.Array:
    """Merges the chunk axis into the batch axis: [J, B, ...] -> [B * J, ...], chunks innermost.

    Two chunks (a, b) of four pairs on two devices:

      device 0   a0 a1   b0 b1        ->   device 0   a0 b0 a1 b1
      device 1   a2 a3   b2 b3             device 1   a2 b2 a3 b3

    No pair moves to another device. The loss only needs the order of `batch.ids_JxBxTxZ`, which is
    merged in the same way.
    """
    a_BxJx = a_JxBx.swapaxes(0, 1)
    return jax.lax.reshape(
        a_BxJx, (a_BxJx.shape[0] * a_BxJx.shape[1], *a_BxJx.shape[2:]), out_sharding=P(BATCH)
    )
