"""The candidates that each anchor is compared with, and statistics of their similarities.

Both forms of the loss (dense.py and chunked.py) are built from these functions.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

MASKED_LOGIT = -1e30  # logit of a text that is not a candidate
# Number of ids of which any makes two texts equal; further ids are those of other positives.
TEXT_IDS = 2
# Z arrays: the z-th of the ids of each text of a list.
Ids = Sequence[jax.Array]


class NegativeRules(NamedTuple):
    """What decides, besides equal texts, which candidates are negatives of a pair.

    Attributes:
      limit_c: float32, the cosine above which a candidate of x or of y is no negative; None: any
        candidate can be one (loss/false_negatives.py).
      guide_cxTxW: unit vectors of a guide, whose cosines `limit_c` is compared with; None: those of
        the model.
      in_batch_c: whether the texts of other pairs are negatives of the pair; None: they are.
    """

    limit_c: jax.Array | None = None
    guide_cxTxW: jax.Array | None = None
    in_batch_c: jax.Array | None = None


class PairBlock(NamedTuple):
    """Some pairs of the batch, as anchors or as candidates.

    Attributes:
      e_cxTxD: unit vectors of x, y and hard negatives; if the pairs are candidates, x is left out.
      ids_cxTZ: int32[c, T * Z], the Z ids of each of the T texts, x included (data/equality.py).
        They share one axis, because a TPU pads the last two axes of an array to 8 x 128.
      number_c: int32 indices of the pairs in the batch.
      rules: further rules about negatives; if the pairs are candidates, x is left out of the
        guide's vectors.
    """

    e_cxTxD: jax.Array
    ids_cxTZ: jax.Array
    number_c: jax.Array
    rules: NegativeRules = NegativeRules()

    def as_candidates(self) -> 'PairBlock':
        """Returns the pairs without the vectors of x."""
        rules = self.rules
        if rules.guide_cxTxW is not None:
            rules = rules._replace(guide_cxTxW=rules.guide_cxTxW[:, 1:])
        return self._replace(e_cxTxD=self.e_cxTxD[:, 1:], rules=rules)


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
      near: float32 scalar, number of negatives above the limit; None without a limit. They are
        negatives in all other statistics except `best_b` and `total_b`.
    """

    best_b: jax.Array
    total_b: jax.Array
    own_b: jax.Array
    own_cosine_b: jax.Array
    rival_b: jax.Array
    negative_cosine: jax.Array
    negatives: jax.Array
    near: jax.Array | None = None


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

    Texts may have more ids than those by which they are equal. By these, an x is compared with y's
    and hard negatives only: they equal positives that x has in other pairs (data/token_reader.py).

    Batches of tens of thousands of pairs always contain equal texts.

    If texts have only one id, the batch is of a run with data.equal_texts=stripped, which compares
    x with x, y with y, and hard negatives with the anchor's y.
    """
    x_Zxb, y_Zxb, _ = split_ids(anchors, anchors.e_cxTxD.shape[1])
    x_Zxc, y_Zxc, hard_ZxM = split_ids(candidates, anchors.e_cxTxD.shape[1])
    partner_bxc = anchors.number_c[:, None] == candidates.number_c
    if len(x_Zxb) == 1:
        share_bxc = compare_ids(x_Zxb, x_Zxc) | compare_ids(y_Zxb, y_Zxc)
        hard_bxM = ~compare_ids(y_Zxb, hard_ZxM)
    else:
        share_bxc = (
            compare_ids(x_Zxb[:TEXT_IDS], x_Zxc)
            | compare_ids(x_Zxb, y_Zxc)
            | compare_ids(y_Zxb[:TEXT_IDS], x_Zxc)
            | compare_ids(y_Zxb[:TEXT_IDS], y_Zxc)
        )
        hard_bxM = ~compare_ids(x_Zxb, hard_ZxM) & ~compare_ids(y_Zxb[:TEXT_IDS], hard_ZxM)
        hard_bxM &= _differ_from_own_pair(x_Zxc, y_Zxc, hard_ZxM)
    present_bx1 = x_Zxb[0][:, None] > 0
    # A pair shares its texts with itself.
    negative_bxc = present_bx1 & (x_Zxc[0] > 0) & ~share_bxc
    hard_bxM &= present_bx1 & (hard_ZxM[0] > 0)
    if anchors.rules.in_batch_c is not None:
        in_batch_bx1 = anchors.rules.in_batch_c[:, None]
        negative_bxc &= in_batch_bx1
        own_bxM = jnp.repeat(partner_bxc, hard_bxM.shape[1] // partner_bxc.shape[1], axis=1)
        hard_bxM &= in_batch_bx1 | own_bxM
    negative_bxC = jnp.concatenate([negative_bxc, hard_bxM], axis=1)
    return negative_bxC, jnp.pad(partner_bxc, ((0, 0), (0, hard_bxM.shape[1])))


def split_ids(pairs: PairBlock, texts: int) -> tuple[Ids, Ids, Ids]:
    """Returns the ids of x, of y and of hard negatives, each as Z arrays of the texts' ids."""
    ids = pairs.ids_cxTZ.shape[1] // texts
    # The ids of a pair: x0 x1 y0 y1 h0 h1 h0 h1.
    by_text = [pairs.ids_cxTZ[:, z::ids] for z in range(ids)]
    return (
        [ids_cxT[:, 0] for ids_cxT in by_text],
        [ids_cxT[:, 1] for ids_cxT in by_text],
        [ids_cxT[:, 2:].reshape(-1) for ids_cxT in by_text],
    )


def compare_ids(a_Zxa: Ids, b_Zxb: Ids) -> jax.Array:
    """Returns bool[a, b]: whether two texts are equal, which they are if any of their ids agree.

    If one has more ids, only the ids that both have are compared.
    """
    same = [a[:, None] == b for a, b in zip(a_Zxa, b_Zxb, strict=False)]
    return functools.reduce(jnp.logical_or, same)


def _differ_from_own_pair(x_Zxc: Ids, y_Zxc: Ids, hard_ZxM: Ids) -> jax.Array:
    """Returns bool[M]: whether hard negatives differ from x and y of their own pair."""
    hard_Zxcx = [hard_M.reshape(len(x_Zxc[0]), -1) for hard_M in hard_ZxM]
    same = [x[:, None] == hard for x, hard in zip(x_Zxc, hard_Zxcx, strict=True)]
    same += [y[:, None] == hard for y, hard in zip(y_Zxc[:TEXT_IDS], hard_Zxcx, strict=False)]
    return ~functools.reduce(jnp.logical_or, same).reshape(-1)


class Logits(NamedTuple):
    """The logits of b anchors with c pairs of candidates.

    Attributes:
      cosine_bxC: float32 cosines of x with all y's, then all hard negatives.
      negative_bxC: whether a candidate is a negative of an anchor, whatever the limit.
      partner_bxC: whether a candidate is the partner of an anchor.
      rows_bxC: logits of the direction x to y; MASKED_LOGIT where there is no candidate.
      columns_bxc: logits of the direction y to x.
      near_bxC: whether a negative is above the limit of the anchor; None without a limit.
    """

    cosine_bxC: jax.Array
    negative_bxC: jax.Array
    partner_bxC: jax.Array
    rows_bxC: jax.Array
    columns_bxc: jax.Array
    near_bxC: jax.Array | None


def compute_logits(anchors: PairBlock, candidates: PairBlock, scale: jax.Array) -> Logits:
    """Returns the logits of this device's anchors with some candidates."""
    cosine_bxC = compute_cosines(anchors.e_cxTxD[:, 0], candidates)
    negative_bxC, partner_bxC = find_negatives_and_partners(anchors, candidates)
    present_bxC = negative_bxC | partner_bxC
    pairs = len(candidates.ids_cxTZ)
    limit_b, limit_c = anchors.rules.limit_c, candidates.rules.limit_c
    if limit_b is None or limit_c is None:
        rows_bxC = jnp.where(present_bxC, scale * cosine_bxC, MASKED_LOGIT)
        columns_bxc = rows_bxC[:, :pairs]
        return Logits(cosine_bxC, negative_bxC, partner_bxC, rows_bxC, columns_bxc, None)
    measured_bxC = jax.lax.stop_gradient(cosine_bxC)
    guide_bxTxW, guide_cxTxW = anchors.rules.guide_cxTxW, candidates.rules.guide_cxTxW
    if guide_bxTxW is not None and guide_cxTxW is not None:
        guide_CxW = flatten_candidates(guide_cxTxW)
        measured_bxC = einsum_float32('bg,cg->bc', guide_bxTxW[:, 0], guide_CxW)
    # Each direction has limits of its own: x compares with the cosine of its pair, and so does y.
    near_bxC = negative_bxC & (measured_bxC > limit_b[:, None])
    near_bxc = negative_bxC[:, :pairs] & (measured_bxC[:, :pairs] > limit_c)
    logits_bxC = scale * cosine_bxC
    return Logits(
        cosine_bxC,
        negative_bxC,
        partner_bxC,
        jnp.where(present_bxC & ~near_bxC, logits_bxC, MASKED_LOGIT),
        jnp.where(present_bxC[:, :pairs] & ~near_bxc, logits_bxC[:, :pairs], MASKED_LOGIT),
        near_bxC,
    )


def compute_stats(
    anchors: PairBlock, candidates: PairBlock, scale: jax.Array
) -> tuple[RowStats, ColumnStats]:
    """Compares this device's anchors with some candidates.

    Maxima carry no gradient: they only keep exp within the range of float32.
    """
    logits = compute_logits(anchors, candidates, scale)
    cosine_bxC, negative_bxC, partner_bxC, logits_bxC, logits_bxc, near_bxC = logits
    rivals_bxC = logits_bxC if near_bxC is None else scale * cosine_bxC
    rivals_bxC = jnp.where(negative_bxC, jax.lax.stop_gradient(rivals_bxC), MASKED_LOGIT)
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
        near=None if near_bxC is None else near_bxC.astype(jnp.float32).sum(1).sum(),
    )
    pairs = candidates.ids_cxTZ.shape[0]
    best_c = jax.lax.stop_gradient(logits_bxc).max(0)
    columns = ColumnStats(
        best_c=best_c,
        total_c=jnp.exp(logits_bxc - best_c).sum(0),
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
        None if a.near is None or b.near is None else a.near + b.near,
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
    if rows.near is not None:
        sums['near'] = rows.near
    return jax.lax.psum({name: value.sum() for name, value in sums.items()}, axes)


def compute_row_lse(rows: RowStats) -> jax.Array:
    """Returns the log-sum-exp of each anchor's logits, float32[b]."""
    return jnp.log(rows.total_b) + rows.best_b


def mask_present_pairs(ids_bxTZ: jax.Array) -> jax.Array:
    """Returns float32[b]: 1 for a pair that is present, 0 for an empty slot (a pair that did not
    fit into its rows, or padding).
    """
    return (ids_bxTZ[:, 0] > 0).astype(jnp.float32)


def compute_pair_indices(count: int, axes: tuple[str, ...]) -> jax.Array:
    """Returns the indices in the batch of this device's pairs, int32[b]."""
    return jax.lax.axis_index(axes) * count + jnp.arange(count)
