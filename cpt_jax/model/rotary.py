"""Rotary positions (RoFormer, arXiv 2104.09864)."""

import jax
import jax.numpy as jnp
import numpy as np

from cpt_jax.errors import UserError
from cpt_jax.model.shape import Shape


def rotate(x_RxSxHxK: jax.Array, positions_RxS: jax.Array, shape: Shape) -> jax.Array:
    """Turns the first `rotary_width` units of each head by their positions, computed in float32."""
    angles_RxSx1xF = (positions_RxS[..., None] * jnp.asarray(rotary_frequencies(shape)))[:, :, None]
    cos, sin = jnp.cos(angles_RxSx1xF), jnp.sin(angles_RxSx1xF)
    turning, rest = jnp.split(x_RxSxHxK, [shape.rotary_width], axis=-1)
    turning = turning.astype(jnp.float32)
    if shape.rotary_pairs == 'halves':
        a, b = jnp.split(turning, 2, axis=-1)
        turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    else:
        a, b = turning[..., ::2], turning[..., 1::2]
        turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(turning.shape)
    return jnp.concatenate([turned.astype(x_RxSxHxK.dtype), rest], axis=-1)


def rotary_frequencies(shape: Shape) -> np.ndarray:
    """float32[rotary_width / 2]: radians a position.

    `rotary_scaling` is () for RoFormer's own, ('linear', factor) for positions that count 1 / factor each, or ('llama3', factor, low, high,
    length): a wave that turns fewer than `low` times within `length` positions counts 1 / factor, one that turns more than `high` times
    counts in full, between them the two mix (transformers' modeling_rope_utils, LLaMA 3.1).
    """
    half = shape.rotary_width // 2
    frequencies = shape.rotary_base ** (-np.arange(half, dtype=np.float64) / half)
    match shape.rotary_scaling:
        case ():
            pass
        case ('linear', factor):
            frequencies /= factor
        case ('llama3', factor, low, high, length):
            turns = length * frequencies / (2 * np.pi)
            full = np.clip((turns - low) / (high - low), 0, 1)
            frequencies *= full + (1 - full) / factor
        case other:
            raise UserError(f'model.rotary_scaling={other}: not known')
    return frequencies.astype(np.float32)
