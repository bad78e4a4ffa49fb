"""The encoder over a batch, chunk after chunk (gradient caching, arXiv 2101.06983)."""

import math
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cpt_jax.data.batch import Batch
from cpt_jax.model.dropout import token_keys
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.parameter import Frozen, gathered_once, is_variable
from cpt_jax.runtime.mesh import BATCH

# Tokens, segments, positions and closing delimiters of a chunk, as for `Encoder.states`.
Rows = tuple[jax.Array, jax.Array, jax.Array, jax.Array]

# Parameters a device: 8 GB of weights and gradient, beside the optimizer's state. Larger models sum
# per layer, where it overlaps.
MAX_PARAMETERS_REDUCED_ONCE = 1_000_000_000


def encode(encoder: Encoder, batch: Batch, key: jax.Array | None = None) -> jax.Array:
    """float32[B, T, D]: the unit vectors of all texts of a batch, chunk after chunk.

    The loss sees the whole batch however many chunks there are (gradient caching, arXiv
    2101.06983). With a key there is dropout.
    """
    return in_chunks(
        encoder, batch, key, lambda encoder, rows, keys_RxS: encoder(*rows, keys_RxS), merge_chunks
    )


def in_chunks(
    encoder: Encoder,
    batch: Batch,
    key: jax.Array | None,
    compute: Callable[[Encoder, Rows, jax.Array | None], jax.Array],
    merge: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """What an encoder makes of a batch, chunk after chunk.

    With several chunks the activations of one are alive at a time and computed again in the
    backward pass; the gradient is that of the whole batch.

    Args:
      key: for dropout; None: there is none.
      compute: of the encoder, the rows of a chunk (as for `Encoder.states`) and the random keys of
        its tokens.
      merge: of what `compute` gives for each of several chunks, stacked.
    """
    chunks = batch.tokens_CxRxS.shape[0]

    def of_chunk(encoder: Encoder, number: int | jax.Array, rows: Rows) -> jax.Array:
        keys_RxS = (
            None if key is None else token_keys(key, text_numbers(batch, number, rows[1]), rows[2])
        )
        return compute(encoder, rows, keys_RxS)

    rows = batch[:4]
    if chunks == 1:
        return of_chunk(encoder, 0, cast(Rows, tuple(array[0] for array in rows)))
    encoder = gathered_once(encoder) if reduce_once(encoder) else encoder
    chunk = jax.checkpoint(
        lambda nothing, numbered: (nothing, of_chunk(encoder, *numbered)), prevent_cse=False
    )
    return merge(jax.lax.scan(chunk, None, (jnp.arange(chunks), rows))[1])


def text_numbers(batch: Batch, chunk: int | jax.Array, segments_RxS: jax.Array) -> jax.Array:
    """int32[R, S]: the number in the batch of the text that a token of a chunk belongs to: the same
    in every layout (data/batch.py).
    """
    chunks, pairs, texts = batch.ids_CxBxT.shape
    parts = math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in BATCH)
    rows = segments_RxS.shape[0]
    part_Rx1 = jnp.arange(rows)[:, None] // (rows // parts)
    return (part_Rx1 * chunks + chunk) * (pairs // parts * texts) + segments_RxS - 1


def reduce_once(encoder: Encoder) -> bool:
    """Is the gradient of a chunked step summed over the devices once, after all chunks, instead of
    for every chunk and layer?

    Where it is, each device holds the weights and their gradient unsharded but for tensor: 8 bytes
    a parameter, for at most MAX_PARAMETERS_REDUCED_ONCE of them. What is frozen has no gradient,
    and is gathered layer by layer.
    """
    tensor = jax.sharding.get_abstract_mesh().shape['tensor']
    trained = [
        weight
        for weight in jax.tree.leaves(encoder, is_leaf=is_variable)
        if not isinstance(weight, Frozen)
    ]
    return sum(weight[...].size for weight in trained) <= MAX_PARAMETERS_REDUCED_ONCE * tensor


def merge_chunks(a_CxBx: jax.Array) -> jax.Array:
    """Returns the chunks of a batch as one: [C, B, ...] -> [B * C, ...], chunks innermost.

    Two chunks (a, b) of four pairs on two devices:

      device 0   a0 a1   b0 b1        ->   device 0   a0 b0 a1 b1
      device 1   a2 a3   b2 b3             device 1   a2 b2 a3 b3

    No pair moves to another device. The loss needs no order but that of `batch.ids_CxBxT`, which
    is merged in the same way.
    """
    a_BxCx = a_CxBx.swapaxes(0, 1)
    return jax.lax.reshape(
        a_BxCx, (a_BxCx.shape[0] * a_BxCx.shape[1], *a_BxCx.shape[2:]), out_sharding=P(BATCH)
    )
