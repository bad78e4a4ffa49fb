"""The chunked form: candidates are gathered and compared chunk by chunk, with a custom gradient.

Memory: chunk k of K holds chunk k of every device's own pairs. Each chunk is therefore gathered
from all devices, and its gradient scattered to all devices, in equal parts. A device holds
b x B / K similarities and B / K vectors; no array has size b x B or B x D. The backward pass
recomputes the similarities: four matrix products instead of three.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cpt_jax.loss.candidates import (
    MASKED_LOGIT,
    ColumnStats,
    NegativeRules,
    PairBlock,
    RowStats,
    compute_logits,
    compute_pair_indices,
    compute_row_lse,
    compute_stats,
    einsum_float32,
    flatten_candidates,
    mask_present_pairs,
    merge_stats,
    reduce_column_stats,
    sum_over_pairs,
    unflatten_candidates,
)

Sums = dict[str, jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def compute_chunked_sums(
    e_BxTxD: jax.Array,
    ids_BxTZ: jax.Array,
    scale: jax.Array,
    rules: NegativeRules,
    axes: tuple[str, ...],
    chunks: int,
) -> Sums:
    """Returns the sums of `sum_over_pairs`. Only the two losses have a gradient."""
    return _forward(e_BxTxD, ids_BxTZ, scale, rules, axes, chunks)[0]


def _forward(
    e_BxTxD: jax.Array,
    ids_BxTZ: jax.Array,
    scale: jax.Array,
    rules: NegativeRules,
    axes: tuple[str, ...],
    chunks: int,
) -> tuple[Sums, tuple]:
    local = jax.shard_map(
        partial(_compute_local_chunked_sums, axes=axes, chunks=chunks),
        in_specs=(P(axes), P(axes), P(), P(axes)),
        out_specs=(P(), P(axes), P(axes)),
    )
    sums, row_lse_B, column_lse_B = local(e_BxTxD, ids_BxTZ, scale, rules)
    return sums, (e_BxTxD, ids_BxTZ, scale, rules, row_lse_B, column_lse_B)


def _backward(
    axes: tuple[str, ...], chunks: int, residuals: tuple, cotangent: Sums
) -> tuple[jax.Array, None, jax.Array, None]:
    local = jax.shard_map(
        partial(_compute_local_chunked_gradients, axes=axes, chunks=chunks),
        in_specs=(P(axes), P(axes), P(), P(axes), P(axes), P(axes), P(), P()),
        out_specs=(P(axes), P()),
    )
    e_BxTxD, ids_BxTZ, scale, rules, row_lse_B, column_lse_B = residuals
    e_BxTxD_gradient, scale_gradient = local(
        e_BxTxD,
        ids_BxTZ,
        scale,
        rules,
        row_lse_B,
        column_lse_B,
        cotangent['loss_xy'],
        cotangent['loss_yx'],
    )
    return e_BxTxD_gradient, None, scale_gradient, None


compute_chunked_sums.defvjp(_forward, _backward)


def _compute_local_chunked_sums(
    e_bxTxD: jax.Array,
    ids_bxTZ: jax.Array,
    scale: jax.Array,
    rules: NegativeRules,
    axes: tuple[str, ...],
    chunks: int,
) -> tuple[Sums, jax.Array, jax.Array]:
    """Returns the sums, and the log-sum-exps of this device's rows and columns, float32[b] each."""
    b = len(ids_bxTZ)
    anchors = PairBlock(e_bxTxD, ids_bxTZ, compute_pair_indices(b, axes), rules)

    def step(rows: RowStats, chunk: PairBlock) -> tuple[RowStats, ColumnStats]:
        chunk_rows, chunk_columns = compute_stats(anchors, _gather_chunk(chunk, axes), scale)
        return merge_stats(rows, chunk_rows), chunk_columns

    zeros_b, zero = jnp.zeros(b), jnp.zeros(())
    masked_b = zeros_b + MASKED_LOGIT
    start = RowStats(
        best_b=masked_b,
        total_b=zeros_b,
        own_b=zeros_b,
        own_cosine_b=zeros_b,
        rival_b=masked_b,
        negative_cosine=zero,
        negatives=zero,
        near=None if rules.limit_c is None else zero,
    )
    start = jax.lax.pcast(start, axes, to='varying')
    rows, columns_IxC = jax.lax.scan(step, start, _chunk_candidates(anchors, chunks))
    column_lse_Ixc, rival_Ixc = reduce_column_stats(columns_IxC, axes, 1)
    column_lse_b = column_lse_Ixc.reshape(-1)[:b]
    rival_b = rival_Ixc.reshape(-1)[:b]
    sums = sum_over_pairs(rows, column_lse_b, rival_b, mask_present_pairs(ids_bxTZ), axes)
    return sums, compute_row_lse(rows), column_lse_b


def _compute_local_chunked_gradients(
    e_bxTxD: jax.Array,
    ids_bxTZ: jax.Array,
    scale: jax.Array,
    rules: NegativeRules,
    row_lse_b: jax.Array,
    column_lse_b: jax.Array,
    weight_xy: jax.Array,
    weight_yx: jax.Array,
    axes: tuple[str, ...],
    chunks: int,
) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients of weight_xy * loss_xy + weight_yx * loss_yx with respect to e_bxTxD
    and to the scale.

    In each direction, the gradient with respect to a logit is
    weight * (softmax probability - (1 if partner else 0)).
    """
    b = len(ids_bxTZ)
    x_bxD = e_bxTxD[:, 0]
    # The gradient of the scale is the sum of pull * cosine, or of x * (gradient of x) / scale. Runs
    # with data.equal_texts=stripped go on bitwise with the first. With the larger masks of other
    # runs, XLA would keep the pulls of a chunk in float32 for it.
    has_one_id = ids_bxTZ.shape[1] == e_bxTxD.shape[1]
    present_bx1 = mask_present_pairs(ids_bxTZ)[:, None]
    anchors = PairBlock(e_bxTxD, ids_bxTZ, compute_pair_indices(b, axes), rules)

    def step(
        carry: tuple[jax.Array, jax.Array], chunk: tuple[PairBlock, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        candidates = _gather_chunk(chunk[0], axes)
        column_lse_c = jax.lax.all_gather(chunk[1], axes, tiled=True)
        c = len(column_lse_c)
        logits = compute_logits(anchors, candidates, scale)
        # Gradient with respect to the logits: of the loss over rows, then of the loss over columns,
        # which only the y's have.
        pull_bxC = (
            weight_xy * jnp.exp(logits.rows_bxC - row_lse_b[:, None])
            - (weight_xy + weight_yx) * logits.partner_bxC
        )
        pull_bxc = (
            weight_yx
            * mask_present_pairs(candidates.ids_cxTZ)
            * jnp.exp(logits.columns_bxc - column_lse_c)
        )
        pull_bxC = present_bx1 * pull_bxC + jnp.pad(pull_bxc, ((0, 0), (0, pull_bxC.shape[1] - c)))
        x_gradient, scale_gradient = carry
        if has_one_id:
            scale_gradient += jnp.sum(pull_bxC * logits.cosine_bxC)
        pull_bxC = (scale * pull_bxC).astype(x_bxD.dtype)
        x_gradient += einsum_float32('bc,cd->bd', pull_bxC, flatten_candidates(candidates.e_cxTxD))
        columns_gradient = unflatten_candidates(einsum_float32('bc,bd->cd', pull_bxC, x_bxD), c)
        return (x_gradient, scale_gradient), jax.lax.psum_scatter(
            columns_gradient, axes, tiled=True
        )

    start = jax.lax.pcast((jnp.zeros(x_bxD.shape), jnp.zeros(())), axes, to='varying')
    per_chunk = _chunk_candidates(anchors, chunks), _split_into_chunks(column_lse_b, chunks)
    (x_gradient, scale_gradient), candidate_gradients = jax.lax.scan(step, start, per_chunk)
    if not has_one_id:
        scale_gradient = jnp.sum(x_bxD * x_gradient) / scale
    rest_bxTxD = candidate_gradients.reshape(-1, *candidate_gradients.shape[2:])[:b]
    gradient = jnp.concatenate([x_gradient[:, None], rest_bxTxD], axis=1).astype(e_bxTxD.dtype)
    return gradient, jax.lax.psum(scale_gradient, axes)


def _chunk_candidates(pairs: PairBlock, chunks: int) -> PairBlock:
    """Splits this device's pairs, as candidates, into chunks [I, c, ...].

    Padding of the last chunk has ids 0 and index -1, so that it is not the partner of any anchor.
    """
    # Indices are shifted by 1 while zeros are padded, and shifted back below.
    shifted = pairs.as_candidates()._replace(number_c=pairs.number_c + 1)
    split = jax.tree.map(lambda array: _split_into_chunks(array, chunks), shifted)
    return split._replace(number_c=split.number_c - 1)


def _split_into_chunks(a_bx: jax.Array, chunks: int) -> jax.Array:
    """Reshapes [b, ...] to [I, c, ...], padded with zeros."""
    size = -(-len(a_bx) // chunks)
    padded = jnp.pad(a_bx, ((0, size * chunks - len(a_bx)), *[(0, 0)] * (a_bx.ndim - 1)))
    return padded.reshape(chunks, size, *a_bx.shape[1:])


def _gather_chunk(chunk: PairBlock, axes: tuple[str, ...]) -> PairBlock:
    """Gathers the same chunk of the pairs of all devices."""
    return jax.tree.map(lambda array: jax.lax.all_gather(array, axes, tiled=True), chunk)
