"""Batches of rows with one text each: row length, number of rows, and vectors."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cpt_jax.model.dense import Dense
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.pooling import normalize
from cpt_jax.model.prefix import Prefix, encode_after_prefix

# Columns computed at once on one device, by platform: enough to keep it busy, and few enough for
# the memory of any device. 1,024 fit a CPU's caches; 8,192 took 1.1 times as long with documents,
# and 1.25 times as long with queries.
COLUMNS_PER_DEVICE = {'cpu': 1 << 10, 'gpu': 1 << 13, 'tpu': 1 << 13}


def choose_row_length(length: int, max_length: int) -> int:
    """Returns the number of columns of rows for texts of up to `length` tokens.

    There are eight row lengths per doubling. They are multiples of 8, from 1,024 on of 128 (as the
    TPU kernel requires), and at most `max_length`.
    """
    step = max(8, 1 << (length - 1).bit_length() >> 4)
    return min(-(-length // step) * step, max_length)


def choose_rows_per_device(platform: str, row_length: int) -> int:
    """Returns the number of rows that one device computes at once."""
    return max(1, COLUMNS_PER_DEVICE[platform] // row_length)


def encode_rows(
    encoder: Encoder,
    dense: Sequence[Dense],
    prefix: Prefix | None,
    tokens_RxS: jax.Array,
    eos_Rx1: jax.Array,
    unpooled: jax.Array | None = None,
    normalized: bool = True,
    width: int | None = None,
) -> jax.Array:
    """Returns float32[R, D]: the vectors of rows with one text each, replicated on all devices so
    that each process has all of them.

    Args:
      encoder: model.
      dense: layers after the pooling; empty for most models.
      prefix: computed prefix of all texts, optional.
      tokens_RxS: int32 ids after the prefix, sharded over the mesh's data and fsdp axes.
      eos_Rx1: int32, index of each text's last token, as for `Encoder.compute_states`.
      unpooled: see `Encoder.compute_states`; only without a prefix.
      normalized: whether the vectors are normalized to unit length.
      width: number of dimensions to keep, the first ones; None keeps all.
    """
    if prefix is not None:
        e_Rx1xD = encode_after_prefix(encoder, prefix, tokens_RxS, eos_Rx1)
    else:
        row_length = tokens_RxS.shape[1]
        positions_RxS = jnp.zeros_like(tokens_RxS) + jnp.arange(row_length)[None]
        segments_RxS = jnp.where(
            positions_RxS <= eos_Rx1 % row_length, 1 + eos_Rx1 // row_length, 0
        )
        e_Rx1xD = encoder.compute_states(
            tokens_RxS, segments_RxS, positions_RxS, eos_Rx1, unpooled=unpooled
        )
    for layer in dense:
        e_Rx1xD = layer(e_Rx1xD)
    e_Rx1xD = e_Rx1xD[..., :width]
    if normalized:
        e_Rx1xD = normalize(e_Rx1xD)
    return jax.reshard(e_Rx1xD[:, 0], P())
