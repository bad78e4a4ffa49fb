"""Which texts of a batch are whose candidates, and a device's anchors beside some of them: what
every form of the loss is made of.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

NEVER = -1e30  # the logit of what is no candidate


class PairBlock(NamedTuple):
    """Some pairs of the batch: anchors, or candidates for them.

    Attributes:
      e_cxTxD: their unit vectors: x, y, hard negatives; of candidates, without x.
      ids_cxT: their content ids, x included.
      number_c: their places in the batch.
    """

    e_cxTxD: jax.Array
    ids_cxT: jax.Array
    number_c: jax.Array


class Rows(NamedTuple):
    """What anchors saw of the candidates so far: float32[b] each, and two sums over them.

    Attributes:
      best_b, total_b: the largest logit, and the sum of exp(logit - best).
      own_b, own_cosine_b: of their partner, 0 until it was seen.
      rival_b: the largest logit of a negative.
      negative_cosine, negatives: the sum of the cosines with negatives, and their number.
    """

    best_b: jax.Array
    total_b: jax.Array
    own_b: jax.Array
    own_cosine_b: jax.Array
    rival_b: jax.Array
    negative_cosine: jax.Array
    negatives: jax.Array


class SeenByColumns(NamedTuple):
    """What the y's of c candidate pairs saw of this device's anchors, as in Rows."""

    best_c: jax.Array
    total_c: jax.Array
    rival_c: jax.Array


def cosines(x_bxD: jax.Array, candidates: PairBlock) -> jax.Array:
    """float32[b, K]: with the y's of the candidates, then with all their hard negatives."""
    return float32_product('bd,kd->bk', x_bxD, candidate_columns(candidates.e_cxTxD))


def float32_product(formula: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """An einsum in float32.

    HIGHEST: a TPU would otherwise round float32 inputs to bfloat16, to 2**-9 of their size, and the
    scale multiplies that by up to 100.
    """
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.einsum(formula, a, b, precision=precision, preferred_element_type=jnp.float32)


def candidate_columns(a_cxTx: jax.Array) -> jax.Array:
    """[c, T - 1, ...] of y and hard negatives -> [K, ...]: all y's first."""
    return jnp.concatenate([a_cxTx[:, 0], a_cxTx[:, 1:].reshape(-1, *a_cxTx.shape[2:])])


def uncolumns(a_Kx: jax.Array, pairs: int) -> jax.Array:
    """The inverse of `candidate_columns`."""
    return jnp.concatenate(
        [a_Kx[:pairs, None], a_Kx[pairs:].reshape(pairs, -1, *a_Kx.shape[1:])], axis=1
    )


def relations(anchors: PairBlock, candidates: PairBlock) -> tuple[jax.Array, jax.Array]:
    """bool[b, K] each: is the column a negative of the row, and is it its partner?

    Neither are texts that are not there, and texts that are no negatives: the same x or the same y
    as the anchor's own pair has, and a hard negative that equals the anchor's y. Duplicates are
    certain in batches of tens of thousands. The partner always takes part.
    """
    x_bx1, y_bx1 = anchors.ids_cxT[:, :1], anchors.ids_cxT[:, 1:2]
    x_1xc = candidates.ids_cxT[None, :, 0]
    y_1xc = candidates.ids_cxT[None, :, 1]
    hard_1xN = candidates.ids_cxT[None, :, 2:].reshape(1, -1)
    partner_bxc = anchors.number_c[:, None] == candidates.number_c[None]
    in_batch_bxc = (x_1xc > 0) & (x_bx1 > 0) & (x_1xc != x_bx1) & (y_1xc != y_bx1)
    hard_bxN = (hard_1xN > 0) & (x_bx1 > 0) & (hard_1xN != y_bx1)
    negative_bxK = jnp.concatenate([in_batch_bxc & ~partner_bxc, hard_bxN], axis=1)
    return negative_bxK, jnp.pad(partner_bxc, ((0, 0), (0, hard_bxN.shape[1])))


def look(anchors: PairBlock, candidates: PairBlock, scale: jax.Array) -> tuple[Rows, SeenByColumns]:
    """Compares this device's anchors with some candidates. Maxima carry no gradient: they only keep
    exp within float32.
    """
    cosine_bxK = cosines(anchors.e_cxTxD[:, 0], candidates)
    negative_bxK, partner_bxK = relations(anchors, candidates)
    logits_bxK = jnp.where(negative_bxK | partner_bxK, scale * cosine_bxK, NEVER)
    rivals_bxK = jnp.where(negative_bxK, jax.lax.stop_gradient(logits_bxK), NEVER)
    best_b = jax.lax.stop_gradient(logits_bxK).max(1)
    rows = Rows(
        best_b,
        jnp.exp(logits_bxK - best_b[:, None]).sum(1),
        jnp.where(partner_bxK, logits_bxK, 0).sum(1),
        jnp.where(partner_bxK, cosine_bxK, 0).sum(1),
        rivals_bxK.max(1),
        jnp.where(negative_bxK, cosine_bxK, 0).sum(1).sum(),
        negative_bxK.astype(jnp.float32).sum(1).sum(),  # row by row: float32 counts to 2**24
    )
    pairs = candidates.ids_cxT.shape[0]
    best_c = jax.lax.stop_gradient(logits_bxK[:, :pairs]).max(0)
    return rows, SeenByColumns(
        best_c, jnp.exp(logits_bxK[:, :pairs] - best_c).sum(0), rivals_bxK[:, :pairs].max(0)
    )


def merge(a: Rows, b: Rows) -> Rows:
    """What the same anchors saw of two groups of candidates."""
    best_b = jnp.maximum(a.best_b, b.best_b)
    total_b = a.total_b * jnp.exp(a.best_b - best_b) + b.total_b * jnp.exp(b.best_b - best_b)
    rival_b = jnp.maximum(a.rival_b, b.rival_b)
    return Rows(
        best_b,
        total_b,
        a.own_b + b.own_b,
        a.own_cosine_b + b.own_cosine_b,
        rival_b,
        a.negative_cosine + b.negative_cosine,
        a.negatives + b.negatives,
    )


def scatter(seen: SeenByColumns, axes: tuple[str, ...], axis: int) -> tuple[jax.Array, jax.Array]:
    """Over the anchors of all devices: the log-sum-exp and the largest rival of the y's of this
    device's own pairs.

    Args:
      seen: of the y's of all pairs of the batch, [.., B, ..].
      axes: of the mesh, over which the batch is split.
      axis: which axis of the arrays that split cuts.
    """
    best, rival = jax.lax.pmax(jax.lax.stop_gradient((seen.best_c, seen.rival_c)), axes)
    total = jax.lax.psum_scatter(
        seen.total_c * jnp.exp(seen.best_c - best), axes, scatter_dimension=axis, tiled=True
    )
    size, me = total.shape[axis], jax.lax.axis_index(axes)
    best, rival = (
        jax.lax.dynamic_slice_in_dim(array, me * size, size, axis) for array in (best, rival)
    )
    return jnp.log(jnp.maximum(total, 1e-30)) + best, rival


def add_up(
    rows: Rows,
    column_lse_b: jax.Array,
    column_rival_b: jax.Array,
    there_b: jax.Array,
    axes: tuple[str, ...],
) -> dict[str, jax.Array]:
    """Sums over the pairs of all devices of what InfoNCE takes the mean of."""
    sums = {
        'loss_xy': there_b * (row_lse(rows) - rows.own_b),
        'loss_yx': there_b * (column_lse_b - rows.own_b),
        # A tie is no hit: vectors that are all alike find nothing.
        'accuracy_xy': there_b * (rows.own_b > rows.rival_b),
        'accuracy_yx': there_b * (rows.own_b > column_rival_b),
        'positive_cosine': there_b * rows.own_cosine_b,
        'pairs': there_b,
        'negative_cosine': rows.negative_cosine,
        'negatives': rows.negatives,
    }
    return jax.lax.psum({name: value.sum() for name, value in sums.items()}, axes)


def row_lse(rows: Rows) -> jax.Array:
    """float32[b]: the log-sum-exp of each anchor's logits."""
    return jnp.log(rows.total_b) + rows.best_b


def there(ids_bxT: jax.Array) -> jax.Array:
    """float32[b]: 1 for a pair that is there, 0 for one that did not fit its rows or fills a
    gap.
    """
    return (ids_bxT[:, 0] > 0).astype(jnp.float32)


def numbers(count: int, axes: tuple[str, ...]) -> jax.Array:
    """int32[b]: the places in the batch of this device's pairs."""
    return jax.lax.axis_index(axes) * count + jnp.arange(count)
