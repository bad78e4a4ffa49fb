"""Attention within the texts of packed rows."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import PartitionSpec as P

from cpt_jax.runtime.mesh import BATCH

# (q_RxSxHxK, k_RxSxGxK, v_RxSxGxK) -> [R, S, H, K]; each of the G key heads serves H / G query
# heads.
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

# On CPUs four blocks in a row of 256 take half the time of one piece, forward and backward.
BLOCK = 64  # queries
_LANES = 128  # of a TPU's vector registers: the kernel's blocks are multiples of it


def attention_within(
    segments_RxS: jax.Array,
    causal: bool,
    form: str,
    reach: int = 0,
    local: bool | jax.Array = False,
) -> Attend:
    """Softmax attention, in float32, of each position to those of its own text, and to no later one
    if causal.

    Padding is segment 0 and sees padding only: its states are never read, and no row of the softmax
    is empty. A text's tokens stand side by side, so the distance of two is that of their columns,
    whatever shares the row.

    Args:
      segments_RxS: which text of its row a token belongs to.
      form: 'masked' computes all S x S scores and masks them; 'blocks' does so for a few queries at
        a time. 'splash' is JAX's kernel for TPUs, which holds a block of scores at a time and skips
        what a causal mask hides. 'cudnn' is NVIDIA's kernel: it reads the mask, one for all heads,
        and keeps no scores. For kernels, rows that are no multiple of 128 columns are masked.
        'interpreted' is the kernel for TPUs step by step on any device, for tests.
      reach: how many columns away a position of a local layer sees.
      local: whether the layer is; a bool[] in a loop over layers of both kinds.
    """
    if form not in ('masked', 'blocks') and segments_RxS.shape[1] % _LANES:
        form = 'masked'
    if isinstance(local, bool):
        return _of_reach(segments_RxS, causal, form, reach if local else None)
    if form in ('masked', 'cudnn'):  # what they are given is a mask: one computation for both kinds
        return _with_mask(
            segments_RxS, causal, form, jnp.where(local, reach, segments_RxS.shape[1])
        )
    # The others skip what a window hides, so it is written into the program: two, of which a layer
    # runs one.
    near, full = (_of_reach(segments_RxS, causal, form, columns) for columns in (reach, None))
    return lambda *qkv: jax.lax.cond(local, near, full, *qkv)


def _of_reach(segments_RxS: jax.Array, causal: bool, form: str, reach: int | None) -> Attend:
    if form in ('masked', 'blocks', 'cudnn'):
        return _with_mask(segments_RxS, causal, form, reach)
    return partial(splash, segments_RxS, causal, reach, form == 'interpreted')


def _with_mask(
    segments_RxS: jax.Array, causal: bool, form: str, reach: int | jax.Array | None
) -> Attend:
    # Its own windows are for causal attention without a mask: ours are in the mask.
    if form == 'cudnn':
        return partial(fused, segment_mask(segments_RxS, causal, reach))
    block = BLOCK if form == 'blocks' else segments_RxS.shape[1]
    return partial(masked, segments_RxS, causal, reach, block)


def segment_mask(
    segments_RxS: jax.Array, causal: bool, reach: int | jax.Array | None = None
) -> jax.Array:
    """bool[R, S, S]: may the second position be seen from the first?"""
    mask_RxSxS = segments_RxS[:, :, None] == segments_RxS[:, None, :]
    length = segments_RxS.shape[1]
    if causal:
        mask_RxSxS &= jnp.tril(jnp.ones((length, length), bool))
    if reach is not None:
        columns = jnp.arange(length)
        mask_RxSxS &= jnp.abs(columns[:, None] - columns) <= reach
    return mask_RxSxS


def masked(
    segments_RxS: jax.Array,
    causal: bool,
    reach: int | jax.Array | None,
    block: int,
    q_RxSxHxK: jax.Array,
    k_RxSxGxK: jax.Array,
    v_RxSxGxK: jax.Array,
) -> jax.Array:
    """All scores of `block` queries at once. A block does without positions that none of its
    queries sees, for their columns alone.
    """
    length = segments_RxS.shape[1]
    mask_RxSxS = segment_mask(segments_RxS, causal, reach)
    columns = reach if isinstance(reach, int) else length
    q_RxGxQxSxK = (
        split_heads(q_RxSxHxK, k_RxSxGxK.shape[2]) * q_RxSxHxK.shape[3] ** -0.5
    ).transpose(0, 2, 3, 1, 4)
    k_RxGxSxK, v_RxGxSxK = k_RxSxGxK.swapaxes(1, 2), v_RxSxGxK.swapaxes(1, 2)
    parts = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        seen = slice(max(start - columns, 0), stop if causal else min(stop + columns, length))
        mask_Rx1x1xsxt = mask_RxSxS[:, None, None, start:stop, seen]
        parts.append(
            _mix(
                mask_Rx1x1xsxt,
                q_RxGxQxSxK[:, :, :, start:stop],
                k_RxGxSxK[:, :, seen],
                v_RxGxSxK[:, :, seen],
            )
        )
    return merge_heads(jnp.concatenate(parts, axis=3).transpose(0, 3, 1, 2, 4))


def _mix(
    mask: jax.Array, q_xGxQxSxK: jax.Array, k_xGxTxK: jax.Array, v_xGxTxK: jax.Array
) -> jax.Array:
    """softmax(q k) v of scaled queries, with any leading axes; the sum divides last, where the
    numbers are fewest.
    """
    scores_xGxQxSxT = jnp.einsum(
        '...gqsk,...gtk->...gqst', q_xGxQxSxK, k_xGxTxK, preferred_element_type=jnp.float32
    )
    scores_xGxQxSxT = jnp.where(mask, scores_xGxQxSxT, -1e30)
    weights_xGxQxSxT = jnp.exp(
        scores_xGxQxSxT - jax.lax.stop_gradient(scores_xGxQxSxT.max(-1, keepdims=True))
    )
    mixed_xGxQxSxK = jnp.einsum(
        '...gqst,...gtk->...gqsk',
        weights_xGxQxSxT.astype(v_xGxTxK.dtype),
        v_xGxTxK,
        preferred_element_type=jnp.float32,
    )
    return (mixed_xGxQxSxK / weights_xGxQxSxT.sum(-1, keepdims=True)).astype(v_xGxTxK.dtype)


def at_ends(
    segments_RxS: jax.Array,
    causal: bool,
    reach: int | None,
    eos_BxT: jax.Array,
    q_BxTxHxK: jax.Array,
    *kv_RxSxGxK: jax.Array,
) -> jax.Array:
    """Attention for queries at the ends of texts alone, to whole rows of keys: [B, T, H, K].
    Queries come scaled.

    Args:
      reach: how many columns away they see; None: any.
      eos_BxT: where the texts end, as row * S + column within a device's rows.
      kv_RxSxGxK: keys and values, or one array that is both.
    """
    heads, kv_heads = P(BATCH, None, 'tensor', None), jax.typeof(kv_RxSxGxK[0]).sharding.spec

    @partial(
        jax.shard_map,
        in_specs=(P(BATCH), P(BATCH), heads, *[kv_heads] * len(kv_RxSxGxK)),
        out_specs=heads,
    )
    def local(
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
        q_BxTxGxQx1xK = q_BxTxHxK.reshape(pairs, texts, groups, heads // groups, 1, width)
        return _mix(
            mask_BxTxS[:, :, None, None, None], q_BxTxGxQx1xK, kv_BxTxGxSxK[0], kv_BxTxGxSxK[-1]
        ).reshape(q_BxTxHxK.shape)

    return local(segments_RxS, eos_BxT, q_BxTxHxK, *kv_RxSxGxK)


def fused(
    mask_RxSxS: jax.Array, q_RxSxHxK: jax.Array, k_RxSxGxK: jax.Array, v_RxSxGxK: jax.Array
) -> jax.Array:
    """cuDNN's kernel through JAX's own function, on each device's own rows and heads."""
    heads = P(BATCH, None, 'tensor', None)

    # check_vma=False: as below.
    @partial(
        jax.shard_map, in_specs=(P(BATCH), heads, heads, heads), out_specs=heads, check_vma=False
    )
    def local(
        mask_RxSxS: jax.Array, q_RxSxHxK: jax.Array, k_RxSxGxK: jax.Array, v_RxSxGxK: jax.Array
    ) -> jax.Array:
        return jax.nn.dot_product_attention(
            q_RxSxHxK, k_RxSxGxK, v_RxSxGxK, mask=mask_RxSxS[:, None], implementation='cudnn'
        )

    return local(mask_RxSxS, q_RxSxHxK, k_RxSxGxK, v_RxSxGxK)


def splash(
    segments_RxS: jax.Array,
    causal: bool,
    reach: int | None,
    interpret: bool,
    q_RxSxHxK: jax.Array,
    k_RxSxGxK: jax.Array,
    v_RxSxGxK: jax.Array,
) -> jax.Array:
    """Block after block, on each device's own rows and heads."""
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

    # check_vma=False: the kernel does not say over which axes its results vary. What has a gradient
    # is split over all axes.
    @partial(
        jax.shard_map, in_specs=(heads, heads, heads, P(BATCH)), out_specs=heads, check_vma=False
    )
    def local(
        q_RxSxHxK: jax.Array, k_RxSxGxK: jax.Array, v_RxSxGxK: jax.Array, segments_RxS: jax.Array
    ) -> jax.Array:
        masks = splash_mask.MultiHeadMask([mask] * q_RxSxHxK.shape[2])
        kernel = splash_kernel.make_splash_mha(
            masks, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
        )

        def row(
            q_SxHxK: jax.Array, k_SxGxK: jax.Array, v_SxGxK: jax.Array, segments_S: jax.Array
        ) -> jax.Array:
            by_head = (array.swapaxes(0, 1) for array in (q_SxHxK, k_SxGxK, v_SxGxK))
            return kernel(
                *by_head, segment_ids=splash_kernel.SegmentIds(segments_S, segments_S)
            ).swapaxes(0, 1)

        return jax.vmap(row)(q_RxSxHxK * (width**-0.5), k_RxSxGxK, v_RxSxGxK, segments_RxS)

    return local(q_RxSxHxK, k_RxSxGxK, v_RxSxGxK, segments_RxS)


def split_heads(h_RxSxHx: jax.Array, groups: int) -> jax.Array:
    """[R, S, H, ..] -> [R, S, G, Q, ..]."""
    r, s, h, width = h_RxSxHx.shape
    spec = jax.typeof(h_RxSxHx).sharding.spec
    return jax.lax.reshape(
        h_RxSxHx, (r, s, groups, h // groups, width), out_sharding=P(*spec[:3], None, spec[3])
    )


def merge_heads(h_RxSxGxQx: jax.Array) -> jax.Array:
    """[R, S, G, Q, ..] -> [R, S, H, ..]."""
    r, s, groups, each, width = h_RxSxGxQx.shape
    spec = jax.typeof(h_RxSxGxQx).sharding.spec
    return jax.lax.reshape(
        h_RxSxGxQx, (r, s, groups * each, width), out_sharding=P(*spec[:3], spec[4])
    )
