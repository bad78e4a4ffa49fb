"""Attention within the texts of packed rows."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash_kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import PartitionSpec as P

from cpt_jax.mesh import BATCH

# (q_RxSxHxK, k_RxSxGxK, v_RxSxGxK) -> [R, S, H, K]; each of the G key heads serves H / G query heads.
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

_LANES = 128  # of a TPU's vector registers: the kernel's blocks are multiples of it


def attention_within(segments_RxS: jax.Array, causal: bool, form: str) -> Attend:
    """Softmax attention, in float32, of each position to those of its own text, and to no later one if causal.

    Padding is segment 0 and sees padding only: its states are never read, and no row of the softmax is empty.

    Args:
      segments_RxS: which text of its row a token belongs to.
      form: 'masked' computes all S x S scores and masks them. 'splash' is JAX's kernel for TPUs, which holds a block of them at a time
        and skips what a causal mask hides; rows that it cannot cut into blocks are masked. 'interpreted' is that kernel step by step on
        any device, for tests.
    """
    if form == 'masked' or segments_RxS.shape[1] % _LANES:
        return partial(masked, segment_mask(segments_RxS, causal))
    return partial(splash, segments_RxS, causal, form == 'interpreted')


def segment_mask(segments_RxS: jax.Array, causal: bool) -> jax.Array:
    """bool[R, S, S]: may the second position be seen from the first?"""
    mask_RxSxS = segments_RxS[:, :, None] == segments_RxS[:, None, :]
    if causal:
        length = segments_RxS.shape[1]
        mask_RxSxS &= jnp.tril(jnp.ones((length, length), bool))
    return mask_RxSxS


def masked(mask_RxSxS: jax.Array, q_RxSxHxK: jax.Array, k_RxSxGxK: jax.Array, v_RxSxGxK: jax.Array) -> jax.Array:
    """All scores at once."""
    r, s, h, width = q_RxSxHxK.shape
    groups = k_RxSxGxK.shape[2]
    q_RxSxGxQxK = _split_heads(q_RxSxHxK, groups) * (width**-0.5)
    scores_RxGxQxSxS = jnp.einsum('rsgqk,rtgk->rgqst', q_RxSxGxQxK, k_RxSxGxK, preferred_element_type=jnp.float32)
    scores_RxGxQxSxS = jnp.where(mask_RxSxS[:, None, None], scores_RxGxQxSxS, -1e30)
    weights_RxGxQxSxS = jax.nn.softmax(scores_RxGxQxSxS).astype(v_RxSxGxK.dtype)
    out_RxSxGxQxK = jnp.einsum('rgqst,rtgk->rsgqk', weights_RxGxQxSxS, v_RxSxGxK)
    return jax.lax.reshape(out_RxSxGxQxK, (r, s, h, width), out_sharding=jax.typeof(q_RxSxHxK).sharding)


def splash(
    segments_RxS: jax.Array, causal: bool, interpret: bool, q_RxSxHxK: jax.Array, k_RxSxGxK: jax.Array, v_RxSxGxK: jax.Array
) -> jax.Array:
    """Block after block, on each device's own rows and heads."""
    length, width = q_RxSxHxK.shape[1], q_RxSxHxK.shape[3]
    block = next(size for size in (512, 256, _LANES) if length % size == 0)
    names = ('q', 'kv', 'kv_compute', 'q_dkv', 'kv_dkv', 'kv_dkv_compute', 'q_dq', 'kv_dq')
    sizes = splash_kernel.BlockSizes(**{f'block_{name}': block for name in names})
    mask = (splash_mask.CausalMask if causal else splash_mask.FullMask)((length, length))
    heads = P(BATCH, None, 'tensor', None)

    # check_vma=False: the kernel does not say over which axes its results vary. What has a gradient is split over all axes.
    @partial(jax.shard_map, in_specs=(heads, heads, heads, P(BATCH)), out_specs=heads, check_vma=False)
    def local(q_RxSxHxK: jax.Array, k_RxSxGxK: jax.Array, v_RxSxGxK: jax.Array, segments_RxS: jax.Array) -> jax.Array:
        masks = splash_mask.MultiHeadMask([mask] * q_RxSxHxK.shape[2])
        kernel = splash_kernel.make_splash_mha(masks, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)

        def row(q_SxHxK: jax.Array, k_SxGxK: jax.Array, v_SxGxK: jax.Array, segments_S: jax.Array) -> jax.Array:
            by_head = (array.swapaxes(0, 1) for array in (q_SxHxK, k_SxGxK, v_SxGxK))
            return kernel(*by_head, segment_ids=splash_kernel.SegmentIds(segments_S, segments_S)).swapaxes(0, 1)

        return jax.vmap(row)(q_RxSxHxK * (width**-0.5), k_RxSxGxK, v_RxSxGxK, segments_RxS)

    return local(q_RxSxHxK, k_RxSxGxK, v_RxSxGxK, segments_RxS)


def _split_heads(q_RxSxHxK: jax.Array, groups: int) -> jax.Array:
    r, s, h, width = q_RxSxHxK.shape
    spec = jax.typeof(q_RxSxHxK).sharding.spec
    return jax.lax.reshape(q_RxSxHxK, (r, s, groups, h // groups, width), out_sharding=jax.P(*spec[:3], None, spec[3]))


def rotate(x_RxSxHxK: jax.Array, positions_RxS: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Rotary positions (RoFormer, arXiv 2104.09864; halves paired as in GPT-NeoX and LLaMA), computed in float32."""
    half = x_RxSxHxK.shape[-1] // 2
    frequencies = base ** (-jnp.arange(half) / half)
    angles_RxSx1xK = (positions_RxS[..., None] * frequencies)[:, :, None]
    cos, sin = jnp.cos(angles_RxSx1xK), jnp.sin(angles_RxSx1xK)
    a, b = jnp.split(x_RxSxHxK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_RxSxHxK.dtype)
