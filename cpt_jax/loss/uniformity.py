"""How evenly vectors lie on the sphere (Wang and Isola, arXiv 2005.10242, section 4.1.2)."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cpt_jax.loss.candidates import float32_product

SHARPNESS = 2.0  # t of the paper


def uniformity(e_BxTxD: jax.Array, ids_BxT: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Returns the mean over x and y of log E exp(-t |u - v|^2), u and v of different pairs.

    Args:
      e_BxTxD: unit vectors of x, y and hard negatives, which do not count.
      ids_BxT: int32 content ids; a pair whose x is 0 is left out, and two texts with equal ids are
        one text, which is not compared with itself.
      axes: mesh axes that B lies over.

    Returns:
      float32 scalar, from -2 t (spread out as far as two vectors can be) to 0 (all vectors equal).
    """
    return jax.shard_map(
        partial(_uniformity_of_part, axes=axes), in_specs=(P(axes), P(axes)), out_specs=P()
    )(e_BxTxD, ids_BxT)


def _uniformity_of_part(e_bxTxD: jax.Array, ids_bxT: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    sides = [_log_mean_potential(e_bxTxD[:, t], ids_bxT[:, t], axes) for t in (0, 1)]
    return (sides[0] + sides[1]) / 2


def _log_mean_potential(e_bxD: jax.Array, ids_b: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Each device compares its b texts with all B, so every pair of texts counts twice."""
    e_BxD, ids_B = (jax.lax.all_gather(array, axes, tiled=True) for array in (e_bxD, ids_b))
    squared_distance_bxB = 2 - 2 * float32_product('bd,kd->bk', e_bxD, e_BxD)
    counts_bxB = (ids_b[:, None] > 0) & (ids_B > 0) & (ids_b[:, None] != ids_B)
    potential_bxB = jnp.where(counts_bxB, jnp.exp(-SHARPNESS * squared_distance_bxB), 0)
    total = jax.lax.psum(jnp.sum(potential_bxB), axes)
    count = jax.lax.psum(jnp.sum(counts_bxB, dtype=jnp.float32), axes)
    return jnp.log(jnp.maximum(total, 1e-30) / jnp.maximum(count, 1))
