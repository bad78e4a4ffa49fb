"""The dense form: one gather and one matrix product for all candidates and both directions."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cpt_jax.loss.candidates import (
    NegativeRules,
    PairBlock,
    compute_pair_indices,
    compute_stats,
    mask_present_pairs,
    reduce_column_stats,
    sum_over_pairs,
)


def compute_dense_sums(
    e_BxTxD: jax.Array,
    ids_BxTZ: jax.Array,
    scale: jax.Array,
    rules: NegativeRules,
    axes: tuple[str, ...],
) -> dict[str, jax.Array]:
    """Returns the sums of `sum_over_pairs`.

    Each device multiplies its b anchors with all candidates: B y's, then all hard negatives. The
    rows of this matrix are the direction x to y. Its first B columns are the direction y to x, and
    are completed by a maximum and a sum over devices. This needs half the products of the usual
    form with two matrix products, and one gather instead of two.
    """
    return jax.shard_map(
        partial(_compute_local_dense_sums, axes=axes),
        in_specs=(P(axes), P(axes), P(), P(axes)),
        out_specs=P(),
    )(e_BxTxD, ids_BxTZ, scale, rules)


def _compute_local_dense_sums(
    e_bxTxD: jax.Array,
    ids_bxTZ: jax.Array,
    scale: jax.Array,
    rules: NegativeRules,
    axes: tuple[str, ...],
) -> dict[str, jax.Array]:
    anchors = PairBlock(e_bxTxD, ids_bxTZ, compute_pair_indices(len(ids_bxTZ), axes), rules)
    own = anchors.as_candidates()
    e, ids, rules = jax.tree.map(
        lambda array: jax.lax.all_gather(array, axes, tiled=True),
        (own.e_cxTxD, own.ids_cxTZ, own.rules),
    )
    candidates = PairBlock(e, ids, jnp.arange(len(ids)), rules)
    rows, columns = compute_stats(anchors, candidates, scale)
    return sum_over_pairs(
        rows, *reduce_column_stats(columns, axes, 0), mask_present_pairs(ids_bxTZ), axes
    )
