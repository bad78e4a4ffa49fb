"""Relative position bias: a number for each head and distance, added to attention logits (T5)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

# Distances from this on share the last bucket of their direction.
_MAX_DISTANCE = 128


def assign_buckets(distances: np.ndarray, buckets: int) -> np.ndarray:
    """Returns the bucket of each distance, key column - query column, in both directions.

    Half of the buckets are for each direction. Half of these are for single distances, and the
    others for ranges of distances that grow logarithmically.
    """
    each = buckets // 2
    exact = each // 2
    sizes = np.abs(distances)
    # In float32 as in transformers, whose rounding decides the bucket at the edge of a range.
    growth = np.log(np.maximum(sizes, 1).astype(np.float32) / np.float32(exact))
    ranges = growth / np.float32(np.log(_MAX_DISTANCE / exact)) * np.float32(each - exact)
    large = np.minimum(exact + ranges.astype(np.int64), each - 1)
    return np.where(distances > 0, each, 0) + np.where(sizes < exact, sizes, large)


def compute_relative_bias(table: nnx.Param, length: int) -> jax.Array:
    """Returns the bias of each query and key of a row, float32[H, S, S].

    Args:
      table: bias of each bucket and head, [buckets, H].
      length: number of columns of a row.
    """
    buckets, heads = table.shape
    table_UxH = jax.reshard(table[...].astype(jnp.float32), P(None, 'tensor'))
    # The last of the 2 S entries is not used: distances are -(S - 1) to S - 1.
    assigned = np.eye(buckets, dtype=np.float32)[
        assign_buckets(np.arange(1 - length, length + 1), buckets)
    ]
    by_distance_HxE = jnp.einsum('eu,uh->he', assigned, table_UxH, precision='highest')
    # Rows of 2 S - 1 from a repeated sequence of 2 S: each row begins one distance earlier. Only
    # copies and slices, because the gradient of a lookup adds up its S x S entries one by one.
    repeated = jnp.broadcast_to(by_distance_HxE[:, None], (heads, length, 2 * length))
    flat = repeated.reshape(heads, -1)[:, : length * (2 * length - 1)]
    return flat.reshape(heads, length, 2 * length - 1)[:, :, length - 1 :]
