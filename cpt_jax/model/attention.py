"""Attention within each text of packed rows."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import PartitionSpec as P

from cpt_jax.model.splash import make_splash_attention
from cpt_jax.runtime.mesh import BATCH

# (q_RxSxHxK, k_RxSxGxK, v_RxSxGxK) -> [R, S, H, K]. Each of the G key heads is used by H / G query
# heads.
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

# Number of queries per block. On a CPU, four blocks per row of 256 take half the time of a single
# block, forward and backward.
QUERY_BLOCK = 64
_LANES = 128  # lanes per TPU vector register; the kernel's block sizes are multiples of this


def make_attend(
    segments_RxS: jax.Array,
    causal: bool,
    form: str,
    reach: int = 0,
    is_local: bool | jax.Array = False,
    bias_HxSxS: jax.Array | None = None,
) -> Attend:
    """Returns a function that computes float32 softmax attention within each text.

    A token attends to the tokens of its own text, and if `causal` only to itself and earlier ones.

    Padding has segment 0 and attends to padding only. Its states are never read, but no row of the
    softmax is empty. The tokens of a text are contiguous, so the distance of two tokens is the
    distance of their columns, wherever the text starts in its row.

    Args:
      segments_RxS: int32, index of each token's text within its row, from 1; 0 is padding.
      causal: whether a token attends to earlier tokens only.
      form: implementation. 'masked' computes all S x S attention logits and masks them. 'blocks'
        does this for a block of queries at a time. 'splash' is JAX's TPU kernel, which holds one
        block of logits and skips blocks that the causal mask hides. 'cudnn' is NVIDIA's kernel,
        which reads one mask for all heads and stores no logits. 'interpreted' runs the TPU kernel
        step by step on any device, for tests. If a row is not a multiple of 128 columns, kernels
        are replaced by 'masked'.
      reach: maximum distance in columns to which a token of a local layer attends.
      is_local: whether the layer is local; a bool[] in a loop over layers of both kinds.
      bias_HxSxS: float32, added to the logits; only for 'masked' and 'blocks', without local
        layers.
    """
    if bias_HxSxS is not None:
        block = QUERY_BLOCK if form == 'blocks' else segments_RxS.shape[1]
        return partial(attend_masked, segments_RxS, causal, None, block, bias_HxSxS=bias_HxSxS)
    if form not in ('masked', 'blocks') and segments_RxS.shape[1] % _LANES:
        form = 'masked'
    if isinstance(is_local, bool):
        return _make_attend_with_reach(segments_RxS, causal, form, reach if is_local else None)
    # These forms take a mask, so one computation serves local and other layers.
    if form in ('masked', 'cudnn'):
        return _make_attend_with_mask(
            segments_RxS, causal, form, jnp.where(is_local, reach, segments_RxS.shape[1])
        )
    # The other forms skip columns outside the window, so the window must be static. Two programs
    # are compiled, and each layer runs one of them.
    near, full = (
        _make_attend_with_reach(segments_RxS, causal, form, columns) for columns in (reach, None)
    )
    return lambda *qkv: jax.lax.cond(is_local, near, full, *qkv)


def _make_attend_with_reach(
    segments_RxS: jax.Array, causal: bool, form: str, reach: int | None
) -> Attend:
    if form in ('masked', 'blocks', 'cudnn'):
        return _make_attend_with_mask(segments_RxS, causal, form, reach)
    return partial(attend_splash, segments_RxS, causal, reach, form == 'interpreted')


def _make_attend_with_mask(
    segments_RxS: jax.Array, causal: bool, form: str, reach: int | jax.Array | None
) -> Attend:
    # cuDNN's own windows need causal attention without a mask, so our window is part of the mask.
    if form == 'cudnn':
        return partial(attend_cudnn, make_segment_mask(segments_RxS, causal, reach))
    block = QUERY_BLOCK if form == 'blocks' else segments_RxS.shape[1]
    return partial(attend_masked, segments_RxS, causal, reach, block)


def make_segment_mask(
    segments_RxS: jax.Array, causal: bool, reach: int | jax.Array | None = None
) -> jax.Array:
    """Returns bool[R, S, S]: whether a token (second axis) attends to another (third axis)."""
    mask_RxSxS = segments_RxS[:, :, None] == segments_RxS[:, None, :]
    length = segments_RxS.shape[1]
    if causal:
        mask_RxSxS &= jnp.tril(jnp.ones((length, length), bool))
    if reach is not None:
        columns = jnp.arange(length)
        mask_RxSxS &= jnp.abs(columns[:, None] - columns) <= reach
    return mask_RxSxS


def attend_masked(
    segments_RxS: jax.Array,
    causal: bool,
    reach: int | jax.Array | None,
    block: int,
    q_RxSxHxK: jax.Array,
    k_RxSxGxK: jax.Array,
    v_RxSxGxK: jax.Array,
    bias_HxSxS: jax.Array | None = None,
) -> jax.Array:
    """Computes attention with a mask, `block` queries at a time.

    A block skips columns that are hidden from all of its queries by the causal mask or the window.
    """
    length = segments_RxS.shape[1]
    mask_RxSxS = make_segment_mask(segments_RxS, causal, reach)
    columns = reach if isinstance(reach, int) else length
    q_RxGxMxSxK = (
        group_query_heads(q_RxSxHxK, k_RxSxGxK.shape[2]) * q_RxSxHxK.shape[3] ** -0.5
    ).transpose(0, 2, 3, 1, 4)
    k_RxGxSxK, v_RxGxSxK = k_RxSxGxK.swapaxes(1, 2), v_RxSxGxK.swapaxes(1, 2)
    parts = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        seen = slice(max(start - columns, 0), stop if causal else min(stop + columns, length))
        mask_Rx1x1xsxt = mask_RxSxS[:, None, None, start:stop, seen]
        bias_RxGxMxsxt = None
        if bias_HxSxS is not None:
            bias_RxGxMxsxt = _broadcast_bias(bias_HxSxS[:, start:stop, seen], q_RxGxMxSxK)
        parts.append(
            _attend_scaled(
                mask_Rx1x1xsxt,
                q_RxGxMxSxK[:, :, :, start:stop],
                k_RxGxSxK[:, :, seen],
                v_RxGxSxK[:, :, seen],
                bias_RxGxMxsxt,
            )
        )
    return ungroup_query_heads(jnp.concatenate(parts, axis=3).transpose(0, 3, 1, 2, 4))


def _broadcast_bias(bias_HxSxP: jax.Array, like_RxGxMxSxK: jax.Array) -> jax.Array:
    """Broadcasts a bias to all rows, [R, G, M, S, P], for the logits of grouped query heads."""
    rows, groups, each = like_RxGxMxSxK.shape[:3]
    spec = jax.typeof(like_RxGxMxSxK).sharding.spec
    shape = (groups, each, *bias_HxSxP.shape[1:])
    bias_GxMxSxP = jax.lax.reshape(bias_HxSxP, shape, out_sharding=P(spec[1], None, None, None))
    return jax.lax.broadcast_in_dim(
        bias_GxMxSxP, (rows, *shape), range(1, 5), out_sharding=P(*spec[:2], None, None, None)
    )


def _attend_scaled(
    mask: jax.Array,
    q_xGxMxSxK: jax.Array,
    k_xGxPxK: jax.Array,
    v_xGxPxK: jax.Array,
    bias_xGxMxSxP: jax.Array | None = None,
) -> jax.Array:
    """Computes softmax(q k + bias) v for queries that are already scaled, with any leading axes.

    The division by the sum of the weights comes last, because the result has the fewest elements.
    """
    scores_xGxMxSxP = jnp.einsum(
        '...gmsk,...gpk->...gmsp', q_xGxMxSxK, k_xGxPxK, preferred_element_type=jnp.float32
    )
    if bias_xGxMxSxP is not None:
        scores_xGxMxSxP = scores_xGxMxSxP + bias_xGxMxSxP
    scores_xGxMxSxP = jnp.where(mask, scores_xGxMxSxP, -1e30)
    weights_xGxMxSxP = jnp.exp(
        scores_xGxMxSxP - jax.lax.stop_gradient(scores_xGxMxSxP.max(-1, keepdims=True))
    )
    mixed_xGxMxSxK = jnp.einsum(
        '...gmsp,...gpk->...gmsk',
        weights_xGxMxSxP.astype(v_xGxPxK.dtype),
        v_xGxPxK,
        preferred_element_type=jnp.float32,
    )
    return (mixed_xGxMxSxK / weights_xGxMxSxP.sum(-1, keepdims=True)).astype(v_xGxPxK.dtype)


def attend_at_ends(
    segments_RxS: jax.Array,
    causal: bool,
    reach: int | None,
    eos_BxT: jax.Array,
    q_BxTxHxK: jax.Array,
    *kv_RxSxGxK: jax.Array,
) -> jax.Array:
    """Computes attention only for the queries at the ends of texts.

    Args:
      segments_RxS: as in `make_attend`.
      causal: whether a token attends to earlier tokens only.
      reach: maximum distance in columns; None: no limit.
      eos_BxT: int32, position of the end of each text, as row * S + column within a device's rows.
      q_BxTxHxK: queries, already scaled.
      kv_RxSxGxK: keys and values, or one array that is used as both.

    Returns:
      float[B, T, H, K].
    """
    heads, kv_heads = P(BATCH, None, 'tensor', None), jax.typeof(kv_RxSxGxK[0]).sharding.spec

    @partial(
        jax.shard_map,
        in_specs=(P(BATCH), P(BATCH), heads, *[kv_heads] * len(kv_RxSxGxK)),
        out_specs=heads,
    )
    def attend_on_shard(
        segments_RxS: jax.Array, eos_BxT: jax.Array, q_BxTxHxK: jax.Array, *kv_RxSxGxK: jax.Array
    ) -> jax.Array:
        (pairs, texts, heads, width), (length, groups) = q_BxTxHxK.shape, kv_RxSxGxK[0].shape[1:3]
        row_BxT = eos_BxT // length
        mask_BxTxS = segments_RxS[row_BxT] == segments_RxS.reshape(-1)[eos_BxT][..., None]
        if causal:
            mask_BxTxS &= jnp.arange(length) <= (eos_BxT % length)[..., None]
        if reach is not None:
            mask_BxTxS &= jnp.abs(jnp.arange(length) - (eos_BxT % length)[..., None]) <= reach
        kv_BxTxGxSxK = [array.swapaxes(1, 2)[row_BxT] for array in kv_RxSxGxK]
        q_BxTxGxMx1xK = q_BxTxHxK.reshape(pairs, texts, groups, heads // groups, 1, width)
        return _attend_scaled(
            mask_BxTxS[:, :, None, None, None], q_BxTxGxMx1xK, kv_BxTxGxSxK[0], kv_BxTxGxSxK[-1]
        ).reshape(q_BxTxHxK.shape)

    return attend_on_shard(segments_RxS, eos_BxT, q_BxTxHxK, *kv_RxSxGxK)


def attend_cudnn(
    mask_RxSxS: jax.Array, q_RxSxHxK: jax.Array, k_RxSxGxK: jax.Array, v_RxSxGxK: jax.Array
) -> jax.Array:
    """Runs cuDNN's kernel through jax.nn, on each device's own rows and heads."""
    heads = P(BATCH, None, 'tensor', None)

    # check_vma=False: as in attend_splash.
    @partial(
        jax.shard_map, in_specs=(P(BATCH), heads, heads, heads), out_specs=heads, check_vma=False
    )
    def attend_on_shard(
        mask_RxSxS: jax.Array, q_RxSxHxK: jax.Array, k_RxSxGxK: jax.Array, v_RxSxGxK: jax.Array
    ) -> jax.Array:
        return jax.nn.dot_product_attention(
            q_RxSxHxK, k_RxSxGxK, v_RxSxGxK, mask=mask_RxSxS[:, None], implementation='cudnn'
        )

    return attend_on_shard(mask_RxSxS, q_RxSxHxK, k_RxSxGxK, v_RxSxGxK)


def attend_splash(
    segments_RxS: jax.Array,
    causal: bool,
    reach: int | None,
    interpret: bool,
    q_RxSxHxK: jax.Array,
    k_RxSxGxK: jax.Array,
    v_RxSxGxK: jax.Array,
) -> jax.Array:
    """Runs JAX's TPU kernel (splash attention) on each device's own rows and heads."""
    length, width = q_RxSxHxK.shape[1], q_RxSxHxK.shape[3]
    block = next(size for size in (512, 256, _LANES) if length % size == 0)
    sizes = splash_kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    mask: splash_mask.Mask
    mask = (splash_mask.CausalMask if causal else splash_mask.FullMask)((length, length))
    if reach is not None:
        mask = splash_mask.LocalMask((length, length), (reach, 0 if causal else reach), 0)
    heads = P(BATCH, None, 'tensor', None)

    # check_vma=False: the kernel does not declare over which mesh axes its results vary. This is
    # safe because every array that has a gradient is split over all axes.
    @partial(
        jax.shard_map, in_specs=(heads, heads, heads, P(BATCH)), out_specs=heads, check_vma=False
    )
    def attend_on_shard(
        q_RxSxHxK: jax.Array, k_RxSxGxK: jax.Array, v_RxSxGxK: jax.Array, segments_RxS: jax.Array
    ) -> jax.Array:
        attend = make_splash_attention(mask, q_RxSxHxK.shape[2], sizes, interpret)

        def attend_row(
            q_SxHxK: jax.Array, k_SxGxK: jax.Array, v_SxGxK: jax.Array, segments_S: jax.Array
        ) -> jax.Array:
            q_HxSxK = q_SxHxK.swapaxes(0, 1)
            k_GxSxK = k_SxGxK.swapaxes(0, 1)
            v_GxSxK = v_SxGxK.swapaxes(0, 1)
            return attend(q_HxSxK, k_GxSxK, v_GxSxK, segments_S).swapaxes(0, 1)

        return jax.vmap(attend_row)(q_RxSxHxK * (width**-0.5), k_RxSxGxK, v_RxSxGxK, segments_RxS)

    return attend_on_shard(q_RxSxHxK, k_RxSxGxK, v_RxSxGxK, segments_RxS)


def group_query_heads(h_RxSxHx: jax.Array, groups: int) -> jax.Array:
    """Reshapes [R, S, H, ..] to [R, S, G, M, ..]: M query heads for each of G key heads."""
    r, s, h, width = h_RxSxHx.shape
    spec = jax.typeof(h_RxSxHx).sharding.spec
    return jax.lax.reshape(
        h_RxSxHx, (r, s, groups, h // groups, width), out_sharding=P(*spec[:3], None, spec[3])
    )


def ungroup_query_heads(h_RxSxGxMx: jax.Array) -> jax.Array:
    """Reshapes [R, S, G, M, ..] to [R, S, H, ..], the inverse of `group_query_heads`."""
    r, s, groups, each, width = h_RxSxGxMx.shape
    spec = jax.typeof(h_RxSxGxMx).sharding.spec
    return jax.lax.reshape(
        h_RxSxGxMx, (r, s, groups * each, width), out_sharding=P(*spec[:3], spec[4])
    )
