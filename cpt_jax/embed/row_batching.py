"""Rows of one text each: how long, how many at once, and their vectors."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cpt_jax.model.dense import Dense
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.pooling import normalized
from cpt_jax.model.prefix import Prefix, states_behind

# Computed at once on one device, by platform: enough to keep it busy, small enough for any. 1,024
# fit a CPU's caches: 8,192 took 1.1 times as long with documents, and 1.25 times with queries.
COLUMNS = {'cpu': 1 << 10, 'gpu': 1 << 13, 'tpu': 1 << 13}


def row_length_of(length: int, max_length: int) -> int:
    """Columns of the rows that texts of up to `length` tokens stand in: eight lengths an octave,
    multiples of 8 (and from 1,024 on of 128, which the kernel for TPUs needs)."""
    step = max(8, 1 << (length - 1).bit_length() >> 4)
    return min(-(-length // step) * step, max_length)


def rows_at_once(platform: str, row_length: int) -> int:
    """Rows that one device computes at once."""
    return max(1, COLUMNS[platform] // row_length)


def encode_rows(
    encoder: Encoder,
    dense: Sequence[Dense],
    prefix: Prefix | None,
    tokens_RxS: jax.Array,
    eos_Rx1: jax.Array,
) -> jax.Array:
    """float32[R, D] on every device, for rows of one text each, behind the prefix if there is one:
    each process gets all vectors.

    Args:
      dense: modules behind the pooling; most models have none.
      tokens_RxS: int32 ids, over the mesh's data and fsdp axes.
      eos_Rx1: int32: where each text ends, as for `Encoder.states`.
    """
    if prefix is not None:
        e_Rx1xD = states_behind(encoder, prefix, tokens_RxS, eos_Rx1)
    else:
        row_length = tokens_RxS.shape[1]
        positions_RxS = jnp.zeros_like(tokens_RxS) + jnp.arange(row_length)[None]
        segments_RxS = jnp.where(
            positions_RxS <= eos_Rx1 % row_length, 1 + eos_Rx1 // row_length, 0
        )
        e_Rx1xD = encoder.states(tokens_RxS, segments_RxS, positions_RxS, eos_Rx1)
    for layer in dense:
        e_Rx1xD = layer(e_Rx1xD)
    return jax.reshard(normalized(e_Rx1xD)[:, 0], P())
