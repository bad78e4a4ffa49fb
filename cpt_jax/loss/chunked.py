"""Some candidates at a time, gathered and compared part after part, with a gradient written by
hand.

NOTE on memory. Part k of K holds part k of every device's own pairs, so that it is gathered from,
and its gradient summed onto, all devices alike. A device holds b x B / K similarities and B / K
vectors; nothing grows with b x B or with B x D. The backward pass computes the similarities again:
four products of matrices instead of three.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cpt_jax.loss.candidates import (
    NEVER,
    PairBlock,
    Rows,
    SeenByColumns,
    add_up,
    candidate_columns,
    cosines,
    float32_product,
    look,
    merge,
    numbers,
    relations,
    row_lse,
    scatter,
    there,
    uncolumns,
)

Sums = dict[str, jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def chunked(
    e_BxTxD: jax.Array, ids_BxT: jax.Array, scale: jax.Array, axes: tuple[str, ...], chunks: int
) -> Sums:
    """The sums of `add_up`, of which the losses alone have a gradient."""
    return _forward(e_BxTxD, ids_BxT, scale, axes, chunks)[0]


def _forward(
    e_BxTxD: jax.Array, ids_BxT: jax.Array, scale: jax.Array, axes: tuple[str, ...], chunks: int
) -> tuple[Sums, tuple]:
    local = jax.shard_map(
        partial(_look_at_all, axes=axes, chunks=chunks),
        in_specs=(P(axes), P(axes), P()),
        out_specs=(P(), P(axes), P(axes)),
    )
    sums, row_lse_B, column_lse_B = local(e_BxTxD, ids_BxT, scale)
    return sums, (e_BxTxD, ids_BxT, scale, row_lse_B, column_lse_B)


def _backward(
    axes: tuple[str, ...], chunks: int, kept: tuple, cotangent: Sums
) -> tuple[jax.Array, None, jax.Array]:
    local = jax.shard_map(
        partial(_pull_from_all, axes=axes, chunks=chunks),
        in_specs=(P(axes), P(axes), P(), P(axes), P(axes), P(), P()),
        out_specs=(P(axes), P()),
    )
    e_BxTxD, ids_BxT, scale, row_lse_B, column_lse_B = kept
    e_BxTxD_gradient, scale_gradient = local(
        e_BxTxD,
        ids_BxT,
        scale,
        row_lse_B,
        column_lse_B,
        cotangent['loss_xy'],
        cotangent['loss_yx'],
    )
    return e_BxTxD_gradient, None, scale_gradient


chunked.defvjp(_forward, _backward)


def _look_at_all(
    e_bxTxD: jax.Array, ids_bxT: jax.Array, scale: jax.Array, axes: tuple[str, ...], chunks: int
) -> tuple[Sums, jax.Array, jax.Array]:
    """The sums, and the log-sum-exp of this device's rows and columns, float32[b] each."""
    b = len(ids_bxT)
    anchors = PairBlock(e_bxTxD, ids_bxT, numbers(b, axes))

    def step(seen: Rows, part: PairBlock) -> tuple[Rows, SeenByColumns]:
        rows, seen_by_columns = look(anchors, _everyones(part, axes), scale)
        return merge(seen, rows), seen_by_columns

    nothing_b, nothing = jnp.zeros(b), jnp.zeros(())
    seen = Rows(
        nothing_b + NEVER, nothing_b, nothing_b, nothing_b, nothing_b + NEVER, nothing, nothing
    )
    seen = jax.lax.pcast(seen, axes, to='varying')
    rows, columns_KxC = jax.lax.scan(step, seen, _parts(anchors, chunks))
    column_lse_Kxc, rival_Kxc = scatter(columns_KxC, axes, 1)
    column_lse_b, rival_b = column_lse_Kxc.reshape(-1)[:b], rival_Kxc.reshape(-1)[:b]
    return add_up(rows, column_lse_b, rival_b, there(ids_bxT), axes), row_lse(rows), column_lse_b


def _pull_from_all(
    e_bxTxD: jax.Array,
    ids_bxT: jax.Array,
    scale: jax.Array,
    row_lse_b: jax.Array,
    column_lse_b: jax.Array,
    weight_xy: jax.Array,
    weight_yx: jax.Array,
    axes: tuple[str, ...],
    chunks: int,
) -> tuple[jax.Array, jax.Array]:
    """The gradient of weight_xy * loss_xy + weight_yx * loss_yx in e_bxTxD and in the scale.

    Of a logit it is weight * (its share of the softmax - 1 for the partner), in both directions.
    """
    b = len(ids_bxT)
    x_bxD, there_bx1 = e_bxTxD[:, 0], there(ids_bxT)[:, None]
    anchors = PairBlock(e_bxTxD, ids_bxT, numbers(b, axes))

    def step(
        carry: tuple[jax.Array, jax.Array], part: tuple[PairBlock, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        candidates = _everyones(part[0], axes)
        column_lse_c = jax.lax.all_gather(part[1], axes, tiled=True)
        c = len(column_lse_c)
        cosine_bxK = cosines(x_bxD, candidates)
        negative_bxK, partner_bxK = relations(anchors, candidates)
        logits_bxK = jnp.where(negative_bxK | partner_bxK, scale * cosine_bxK, NEVER)
        pull_bxK = (
            weight_xy * jnp.exp(logits_bxK - row_lse_b[:, None])
            - (weight_xy + weight_yx) * partner_bxK
        )
        pull_bxc = weight_yx * there(candidates.ids_cxT) * jnp.exp(logits_bxK[:, :c] - column_lse_c)
        pull_bxK = there_bx1 * pull_bxK + jnp.pad(pull_bxc, ((0, 0), (0, pull_bxK.shape[1] - c)))
        x_gradient, scale_gradient = carry
        scale_gradient += jnp.sum(pull_bxK * cosine_bxK)
        pull_bxK = (scale * pull_bxK).astype(x_bxD.dtype)
        x_gradient += float32_product('bk,kd->bd', pull_bxK, candidate_columns(candidates.e_cxTxD))
        columns_gradient = uncolumns(float32_product('bk,bd->kd', pull_bxK, x_bxD), c)
        return (x_gradient, scale_gradient), jax.lax.psum_scatter(
            columns_gradient, axes, tiled=True
        )

    start = jax.lax.pcast((jnp.zeros(x_bxD.shape), jnp.zeros(())), axes, to='varying')
    parts = _parts(anchors, chunks), _split(column_lse_b, chunks)
    (x_gradient, scale_gradient), rest = jax.lax.scan(step, start, parts)
    rest_bxTxD = rest.reshape(-1, *rest.shape[2:])[:b]
    gradient = jnp.concatenate([x_gradient[:, None], rest_bxTxD], axis=1).astype(e_bxTxD.dtype)
    return gradient, jax.lax.psum(scale_gradient, axes)


def _parts(pairs: PairBlock, chunks: int) -> PairBlock:
    """This device's pairs as candidates, [K, c, ...]; what fills the last part has no ids, and is
    nobody's partner.
    """
    candidates = pairs.e_cxTxD[:, 1:], pairs.ids_cxT, pairs.number_c + 1
    e, ids, number = (_split(array, chunks) for array in candidates)
    return PairBlock(e, ids, number - 1)


def _split(a_bx: jax.Array, chunks: int) -> jax.Array:
    """[b, ...] -> [K, c, ...], filled with zeros."""
    size = -(-len(a_bx) // chunks)
    padded = jnp.pad(a_bx, ((0, size * chunks - len(a_bx)), *[(0, 0)] * (a_bx.ndim - 1)))
    return padded.reshape(chunks, size, *a_bx.shape[1:])


def _everyones(part: PairBlock, axes: tuple[str, ...]) -> PairBlock:
    """The same part of all devices' pairs."""
    return PairBlock(*(jax.lax.all_gather(array, axes, tiled=True) for array in part))
