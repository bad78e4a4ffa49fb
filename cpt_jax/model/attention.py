"""Attention within the texts of packed rows."""

import jax
import jax.numpy as jnp


def segment_mask(segments_RxS: jax.Array, causal: bool) -> jax.Array:
    """bool[R, S, S]: may the second position be seen from the first: same text, and not later if causal.

    Padding is segment 0 and sees padding only: its states are never read, and no row of the softmax is empty.
    """
    mask_RxSxS = segments_RxS[:, :, None] == segments_RxS[:, None, :]
    if causal:
        length = segments_RxS.shape[1]
        mask_RxSxS &= jnp.tril(jnp.ones((length, length), bool))
    return mask_RxSxS


def attend(q_RxSxHxK: jax.Array, k_RxSxGxK: jax.Array, v_RxSxGxK: jax.Array, mask_RxSxS: jax.Array) -> jax.Array:
    """Softmax attention; each of the G key heads serves H / G query heads. Softmax in float32; result as `q`."""
    r, s, h, width = q_RxSxHxK.shape
    groups = k_RxSxGxK.shape[2]
    q_RxSxGxQxK = _split_heads(q_RxSxHxK, groups) * (width**-0.5)
    scores_RxGxQxSxS = jnp.einsum('rsgqk,rtgk->rgqst', q_RxSxGxQxK, k_RxSxGxK, preferred_element_type=jnp.float32)
    scores_RxGxQxSxS = jnp.where(mask_RxSxS[:, None, None], scores_RxGxQxSxS, -1e30)
    weights_RxGxQxSxS = jax.nn.softmax(scores_RxGxQxSxS).astype(v_RxSxGxK.dtype)
    out_RxSxGxQxK = jnp.einsum('rgqst,rtgk->rsgqk', weights_RxGxQxSxS, v_RxSxGxK)
    return jax.lax.reshape(out_RxSxGxQxK, (r, s, h, width), out_sharding=jax.typeof(q_RxSxHxK).sharding)


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
