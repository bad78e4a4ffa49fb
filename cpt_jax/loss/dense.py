"""All candidates at once: one gather, one matrix product, both directions."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cpt_jax.loss.candidates import PairBlock, add_up, look, numbers, scatter, there


def dense(
    e_BxTxD: jax.Array, ids_BxT: jax.Array, scale: jax.Array, axes: tuple[str, ...]
) -> dict[str, jax.Array]:
    """The sums of `add_up`. Each device multiplies its b anchors with all candidates: B y's, then
    all hard negatives.

    The rows of that matrix are one direction. Its first B columns are the other one, and are
    finished by a maximum and a sum over the devices: half the products of the usual two-matmul
    form, and one gather instead of two.
    """
    return jax.shard_map(
        partial(_local, axes=axes), in_specs=(P(axes), P(axes), P()), out_specs=P()
    )(e_BxTxD, ids_BxT, scale)


def _local(
    e_bxTxD: jax.Array, ids_bxT: jax.Array, scale: jax.Array, axes: tuple[str, ...]
) -> dict[str, jax.Array]:
    candidates, ids = (
        jax.lax.all_gather(array, axes, tiled=True) for array in (e_bxTxD[:, 1:], ids_bxT)
    )
    anchors = PairBlock(e_bxTxD, ids_bxT, numbers(len(ids_bxT), axes))
    rows, columns = look(anchors, PairBlock(candidates, ids, jnp.arange(len(ids))), scale)
    return add_up(rows, *scatter(columns, axes, 0), there(ids_bxT), axes)
