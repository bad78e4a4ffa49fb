"""The candidates that each anchor is compared with, and statistics of their similarities.

Both forms of the loss (dense.py and chunked.py) are built from these functions.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

MASKED_LOGIT = -1e30  # logit of a text that is not a candidate


class PairBlock(NamedTuple):
    """Some pairs of the batch, as anchors or as candidates.

    Attributes:
      e_cxTxD: unit vectors of x, y and hard negatives; if the pairs are candidates, x is left out.
      ids_cxTxZ: int32 ids by which the texts are compared, x included (data/equality.py).
      number_c: int32 indices of the pairs in the batch.
    """

    e_cxTxD: jax.Array
    ids_cxTxZ: jax.Array
    number_c: jax.Array


class RowStats(NamedTuple):
    """Statistics of b anchors over the candidates seen so far.

    Attributes:
      best_b: float32, largest logit.
      total_b: float32, sum of exp(logit - best).
      own_b: float32, logit of the partner; 0 until the partner has been seen.
      own_cosine_b: float32, cosine with the partner; 0 until the partner has been seen.
      rival_b: float32, largest logit of a negative.
      negative_cosine: float32 scalar, sum over all anchors of the cosines with negatives.
      negatives: float32 scalar, number of these cosines.
    """

    best_b: jax.Array
    total_b: jax.Array
    own_b: jax.Array
    own_cosine_b: jax.Array
    rival_b: jax.Array
    negative_cosine: jax.Array
    negatives: jax.Array


class ColumnStats(NamedTuple):
    """Statistics of each candidate's column (its y) over this device's anchors; c candidates.

    The fields have the same meaning as in RowStats.
    """

    best_c: jax.Array
    total_c: jax.Array
    rival_c: jax.Array


def compute_cosines(x_bxD: jax.Array, candidates: PairBlock) -> jax.Array:
    """Returns float32[b, K] cosines with the candidates: all y's, then all hard negatives."""
    return einsum_float32('bd,cd->bc', x_bxD, flatten_candidates(candidates.e_cxTxD))


def einsum_float32(formula: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Computes an einsum in float32.

    float32 inputs need precision HIGHEST: a TPU would otherwise round them to bfloat16, a relative
    error of 2**-9 that the scale multiplies by up to 100.
    """
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.einsum(formula, a, b, precision=precision, preferred_element_type=jnp.float32)


def flatten_candidates(a_cxTx: jax.Array) -> jax.Array:
    """Reshapes [c, T - 1, ...] of y and hard negatives to [C, ...], all y's first."""
    return jnp.concatenate([a_cxTx[:, 0], a_cxTx[:, 1:].reshape(-1, *a_cxTx.shape[2:])])


def unflatten_candidates(a_Kx: jax.Array, pairs: int) -> jax.Array:
    """Inverts `flatten_candidates`."""
    return jnp.concatenate(
        [a_Kx[:pairs, None], a_Kx[pairs:].reshape(pairs, -1, *a_Kx.shape[1:])], axis=1
    )


def find_negatives_and_partners(
    anchors: PairBlock, candidates: PairBlock
) -> tuple[jax.Array, jax.Array]:
    """Returns two masks, bool[b, C]: whether a candidate is a negative of an anchor, and whether it
    is its partner. The partner is always included.

    Two pairs that have an equal text among their x and y give each other no negative:

      y_j = y_i, y_j = x_i    y_j is the anchor's own text or partner
      x_j = x_i, x_j = y_i    y_j belongs to the anchor's own text or to its partner

    One mask serves both directions, in which logit (i, j) compares x_i with y_j and y_j with x_i:
    if i and j, and x and y, are exchanged, the four conditions stay the same four.

    A hard negative is masked for an anchor if it equals the anchor's x or y, and for all anchors if
    it equals x or y of its own pair. The hard negatives of pairs that share a text with the anchor
    stay: they were chosen against that text. Chains over several texts are not closed: of (a, b),
    (b, c) and (c, d), the first and the last pair give each other negatives.

    Batches of tens of thousands of pairs always contain equal texts. If texts have only one id, the
    batch is of a run that began before data.equal_texts existed: see `_find_in_same_columns`.
    """
    if anchors.ids_cxTxZ.shape[-1] == 1:
        return _find_in_same_columns(anchors, candidates)
    x_bxZ, y_bxZ = anchors.ids_cxTxZ[:, 0], anchors.ids_cxTxZ[:, 1]
    x_cxZ, y_cxZ = candidates.ids_cxTxZ[:, 0], candidates.ids_cxTxZ[:, 1]
    hard_MxZ = candidates.ids_cxTxZ[:, 2:].reshape(-1, candidates.ids_cxTxZ.shape[-1])
    partner_bxc = anchors.number_c[:, None] == candidates.number_c
    share_bxc = (
        compare_ids(x_bxZ, x_cxZ)
        | compare_ids(x_bxZ, y_cxZ)
        | compare_ids(y_bxZ, x_cxZ)
        | compare_ids(y_bxZ, y_cxZ)
    )
    present_bx1 = x_bxZ[:, :1] > 0
    negative_bxc = present_bx1 & (x_cxZ[:, 0] > 0) & ~share_bxc & ~partner_bxc
    masked_bxM = compare_ids(x_bxZ, hard_MxZ) | compare_ids(y_bxZ, hard_MxZ)
    hard_bxM = present_bx1 & _find_hard_negatives(candidates.ids_cxTxZ) & ~masked_bxM
    negative_bxC = jnp.concatenate([negative_bxc, hard_bxM], axis=1)
    return negative_bxC, jnp.pad(partner_bxc, ((0, 0), (0, hard_bxM.shape[1])))


def compare_ids(a_axZ: jax.Array, b_bxZ: jax.Array) -> jax.Array:
    """Returns bool[a, b]: whether two texts are equal, which they are if any of their ids agree."""
    # No array has the small axis Z last, which a TPU would pad to 128.
    same = [a_axZ[:, None, z] == b_bxZ[:, z] for z in range(a_axZ.shape[-1])]
    return functools.reduce(jnp.logical_or, same)


def _find_hard_negatives(ids_cxTxZ: jax.Array) -> jax.Array:
    """Returns bool[M]: which hard negatives are present and differ from x and y of their pair."""
    hard_cxHxZ = ids_cxTxZ[:, 2:]
    own_cxH = (hard_cxHxZ == ids_cxTxZ[:, :1]) | (hard_cxHxZ == ids_cxTxZ[:, 1:2])
    return ((hard_cxHxZ[..., 0] > 0) & ~own_cxH.any(-1)).reshape(-1)


def _find_in_same_columns(anchors: PairBlock, candidates: PairBlock) -> tuple[jax.Array, jax.Array]:
    """Returns the masks of `find_negatives_and_partners` for data.equal_texts=stripped.

    A candidate is masked if it is absent (id 0), if its pair has the same x or the same y as the
    anchor's pair, or if it is a hard negative that equals the anchor's y.
    """
    anchor_ids_bxT, ids_cxT = anchors.ids_cxTxZ[..., 0], candidates.ids_cxTxZ[..., 0]
    x_bx1, y_bx1 = anchor_ids_bxT[:, :1], anchor_ids_bxT[:, 1:2]
    x_1xc = ids_cxT[None, :, 0]
    y_1xc = ids_cxT[None, :, 1]
    hard_1xM = ids_cxT[None, :, 2:].reshape(1, -1)
    partner_bxc = anchors.number_c[:, None] == candidates.number_c[None]
    in_batch_bxc = (x_1xc > 0) & (x_bx1 > 0) & (x_1xc != x_bx1) & (y_1xc != y_bx1)
    hard_bxM = (hard_1xM > 0) & (x_bx1 > 0) & (hard_1xM != y_bx1)
    negative_bxC = jnp.concatenate([in_batch_bxc & ~partner_bxc, hard_bxM], axis=1)
    return negative_bxC, jnp.pad(partner_bxc, ((0, 0), (0, hard_bxM.shape[1])))


def compute_stats(
    anchors: PairBlock, candidates: PairBlock, scale: jax.Array
) -> tuple[RowStats, ColumnStats]:
    """Compares this device's anchors with some candidates.

    Maxima carry no gradient: they only keep exp within the range of float32.
    """
    cosine_bxC = compute_cosines(anchors.e_cxTxD[:, 0], candidates)
    negative_bxC, partner_bxC = find_negatives_and_partners(anchors, candidates)
    logits_bxC = jnp.where(negative_bxC | partner_bxC, scale * cosine_bxC, MASKED_LOGIT)
    rivals_bxC = jnp.where(negative_bxC, jax.lax.stop_gradient(logits_bxC), MASKED_LOGIT)
    best_b = jax.lax.stop_gradient(logits_bxC).max(1)
    rows = RowStats(
        best_b=best_b,
        total_b=jnp.exp(logits_bxC - best_b[:, None]).sum(1),
        own_b=jnp.where(partner_bxC, logits_bxC, 0).sum(1),
        own_cosine_b=jnp.where(partner_bxC, cosine_bxC, 0).sum(1),
        rival_b=rivals_bxC.max(1),
        negative_cosine=jnp.where(negative_bxC, cosine_bxC, 0).sum(1).sum(),
        # Summed row by row first: float32 counts exactly only up to 2**24.
        negatives=negative_bxC.astype(jnp.float32).sum(1).sum(),
    )
    pairs = candidates.ids_cxTxZ.shape[0]
    best_c = jax.lax.stop_gradient(logits_bxC[:, :pairs]).max(0)
    columns = ColumnStats(
        best_c=best_c,
        total_c=jnp.exp(logits_bxC[:, :pairs] - best_c).sum(0),
        rival_c=rivals_bxC[:, :pairs].max(0),
    )
    return rows, columns


def merge_stats(a: RowStats, b: RowStats) -> RowStats:
    """Merges the statistics of the same anchors over two groups of candidates."""
    best_b = jnp.maximum(a.best_b, b.best_b)
    total_b = a.total_b * jnp.exp(a.best_b - best_b) + b.total_b * jnp.exp(b.best_b - best_b)
    rival_b = jnp.maximum(a.rival_b, b.rival_b)
    return RowStats(
        best_b,
        total_b,
        a.own_b + b.own_b,
        a.own_cosine_b + b.own_cosine_b,
        rival_b,
        a.negative_cosine + b.negative_cosine,
        a.negatives + b.negatives,
    )


def reduce_column_stats(
    columns: ColumnStats, axes: tuple[str, ...], axis: int
) -> tuple[jax.Array, jax.Array]:
    """Reduces column statistics over the anchors of all devices.

    Args:
      columns: statistics of the y's of all pairs of the batch, [.., B, ..].
      axes: mesh axes over which the batch is split.
      axis: array axis that has size B.

    Returns:
      The log-sum-exp and the largest logit of a negative, for the y's of this device's own pairs.
    """
    best, rival = jax.lax.pmax(jax.lax.stop_gradient((columns.best_c, columns.rival_c)), axes)
    total = jax.lax.psum_scatter(
        columns.total_c * jnp.exp(columns.best_c - best), axes, scatter_dimension=axis, tiled=True
    )
    size = total.shape[axis]
    index = jax.lax.axis_index(axes)
    best, rival = (
        jax.lax.dynamic_slice_in_dim(array, index * size, size, axis) for array in (best, rival)
    )
    return jnp.log(jnp.maximum(total, 1e-30)) + best, rival


def sum_over_pairs(
    rows: RowStats,
    column_lse_b: jax.Array,
    column_rival_b: jax.Array,
    present_b: jax.Array,
    axes: tuple[str, ...],
) -> dict[str, jax.Array]:
    """Returns the sums, over the pairs of all devices, of the losses and metrics that InfoNCE
    averages.

    Args:
      rows: statistics of this device's anchors over all candidates.
      column_lse_b: float32, log-sum-exp of the logits of each y.
      column_rival_b: float32, largest logit of a negative of each y.
      present_b: float32, 1 for a pair that is present, 0 for an empty slot.
      axes: mesh axes over which the batch is split.
    """
    sums = {
        'loss_xy': present_b * (compute_row_lse(rows) - rows.own_b),
        'loss_yx': present_b * (column_lse_b - rows.own_b),
        # A tie counts as wrong, so identical vectors have accuracy 0.
        'accuracy_xy': present_b * (rows.own_b > rows.rival_b),
        'accuracy_yx': present_b * (rows.own_b > column_rival_b),
        'positive_cosine': present_b * rows.own_cosine_b,
        'pairs': present_b,
        'negative_cosine': rows.negative_cosine,
        'negatives': rows.negatives,
    }
    return jax.lax.psum({name: value.sum() for name, value in sums.items()}, axes)


def compute_row_lse(rows: RowStats) -> jax.Array:
    """Returns the log-sum-exp of each anchor's logits, float32[b]."""
    return jnp.log(rows.total_b) + rows.best_b


def mask_present_pairs(ids_bxTxZ: jax.Array) -> jax.Array:
    """Returns float32[b]: 1 for a pair that is present, 0 for an empty slot (a pair that did not
    fit into its rows, or padding).
    """
    return (ids_bxTxZ[:, 0, 0] > 0).astype(jnp.float32)


def compute_pair_indices(count: int, axes: tuple[str, ...]) -> jax.Array:
    """Returns the indices in the batch of this device's pairs, int32[b]."""
    return jax.lax.axis_index(axes) * count + jnp.arange(count)
