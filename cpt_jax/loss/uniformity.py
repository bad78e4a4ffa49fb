"""Uniformity of vectors on the sphere (Wang and Isola, arXiv 2005.10242, section 4.1.2)."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cpt_jax.loss.candidates import TEXT_IDS, compare_ids, einsum_float32

SHARPNESS = 2.0  # t in the paper


def compute_uniformity(
    e_BxTxD: jax.Array, ids_BxTxZ: jax.Array, axes: tuple[str, ...]
) -> jax.Array:
    """Returns the mean over x and y of log E exp(-t |u - v|^2), with u and v from different pairs.

    Args:
      e_BxTxD: unit vectors of x, y and hard negatives; hard negatives are ignored.
      ids_BxTxZ: int32 ids of the texts. Absent texts (id 0) are ignored, and equal texts are not
        compared with each other.
      axes: mesh axes that split B.

    Returns:
      float32 scalar: 0 if all vectors are equal, about -2 t if they are spread uniformly over a
        high-dimensional sphere (where |u - v|^2 is about 2).
    """
    return jax.shard_map(
        partial(_compute_local_uniformity, axes=axes), in_specs=(P(axes), P(axes)), out_specs=P()
    )(e_BxTxD, ids_BxTxZ)


def _compute_local_uniformity(
    e_bxTxD: jax.Array, ids_bxTxZ: jax.Array, axes: tuple[str, ...]
) -> jax.Array:
    ids_bxTxZ = ids_bxTxZ[..., :TEXT_IDS]
    sides = [_compute_log_mean_potential(e_bxTxD[:, t], ids_bxTxZ[:, t], axes) for t in (0, 1)]
    return (sides[0] + sides[1]) / 2


def _compute_log_mean_potential(
    e_bxD: jax.Array, ids_bxZ: jax.Array, axes: tuple[str, ...]
) -> jax.Array:
    """Returns log E exp(-t |u - v|^2) over the texts of one side.

    Each device compares its b texts with all B texts, so every pair of texts is counted twice.
    """
    e_BxD, ids_BxZ = (jax.lax.all_gather(array, axes, tiled=True) for array in (e_bxD, ids_bxZ))
    squared_distance_bxB = 2 - 2 * einsum_float32('bd,cd->bc', e_bxD, e_BxD)
    present_bxB = (ids_bxZ[:, :1] > 0) & (ids_BxZ[:, 0] > 0)
    counts_bxB = present_bxB & ~compare_ids(tuple(ids_bxZ.T), tuple(ids_BxZ.T))
    potential_bxB = jnp.where(counts_bxB, jnp.exp(-SHARPNESS * squared_distance_bxB), 0)
    total = jax.lax.psum(jnp.sum(potential_bxB), axes)
    count = jax.lax.psum(jnp.sum(counts_bxB, dtype=jnp.float32), axes)
    return jnp.log(jnp.maximum(total, 1e-30) / jnp.maximum(count, 1))
