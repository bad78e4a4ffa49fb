"""Rotary positions (RoFormer, arXiv 2104.09864)."""

import math
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from cpt_jax.model.config import EncoderConfig
from cpt_jax.runtime.errors import UserError

T = TypeVar('T', np.ndarray, float)


def rotate(
    x_RxSxHxK: jax.Array,
    positions_RxS: jax.Array,
    config: EncoderConfig,
    local: bool | jax.Array = False,
) -> jax.Array:
    """Turns the first `rotary_width` units of each head by their positions, as its layer does,
    local or not, computed in float32.
    """
    kinds = (
        (config.rotary_base, config.rotary_scaling),
        (config.local_rotary_base, config.local_rotary_scaling),
    )
    frequencies_F = _of_kind(
        local, *(rotary_frequencies(config.rotary_width, *kind) for kind in kinds)
    )
    angles_RxSx1xF = (positions_RxS[..., None] * jnp.asarray(frequencies_F))[:, :, None]
    cos, sin = jnp.cos(angles_RxSx1xF), jnp.sin(angles_RxSx1xF)
    lengths = [_length(scaling) for _, scaling in kinds]
    if lengths != [1, 1]:
        cos, sin = (part * _of_kind(local, *lengths) for part in (cos, sin))
    turning, rest = jnp.split(x_RxSxHxK, [config.rotary_width], axis=-1)
    turning = turning.astype(jnp.float32)
    if config.rotary_pairs == 'halves':
        a, b = jnp.split(turning, 2, axis=-1)
        turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    else:
        a, b = turning[..., ::2], turning[..., 1::2]
        turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(turning.shape)
    return jnp.concatenate([turned.astype(x_RxSxHxK.dtype), rest], axis=-1)


def _of_kind(local: bool | jax.Array, full: T, near: T) -> T | jax.Array:
    """What a layer that is local or not has of the two."""
    if isinstance(local, bool):
        return near if local else full
    return jnp.where(local, near, full)


def rotary_frequencies(width: int, base: float, scaling: tuple[str | float, ...]) -> np.ndarray:
    """float32[width / 2]: radians a position.

    `scaling` is () for RoFormer's own, ('linear', factor) for positions that count 1 / factor each,
    or one of (both as transformers' modeling_rope_utils has them)

      ('llama3', factor, low, high, length), LLaMA 3.1: a wave that turns fewer than `low` times
      within `length` positions counts
        1 / factor, one that turns more than `high` times counts in full, between them the two mix;
      ('yarn', factor, slow, fast, length, truncated, attention factor), YaRN (arXiv 2309.00071):
      the same with waves of `slow` and `fast`
        turns, but mixed by their number in the sequence of waves, from a whole number to a whole
        number where truncated; turned vectors are longer by the attention factor.
    """
    half = width // 2
    frequencies = base ** (-np.arange(half, dtype=np.float64) / half)
    kind = scaling[0] if scaling else ''
    numbers = [float(value) for value in scaling[1:] if not isinstance(value, str)]
    match kind, numbers:
        case '', []:
            pass
        case 'linear', [factor]:
            frequencies /= factor
        case 'llama3', [factor, low, high, length]:
            turns = length * frequencies / (2 * np.pi)
            full = np.clip((turns - low) / (high - low), 0, 1)
            frequencies *= full + (1 - full) / factor
        case 'yarn', [factor, slow, fast, length, truncated, _]:
            first, last = (
                half * math.log(length / (2 * math.pi * turns)) / math.log(base)
                for turns in (fast, slow)
            )
            if truncated:
                first, last = math.floor(first), math.ceil(last)
            first, last = max(first, 0), min(last, width - 1)
            # 0.001: as transformers does where both are the same wave.
            full = 1 - np.clip((np.arange(half) - first) / (last - first or 0.001), 0, 1)
            frequencies *= full + (1 - full) / factor
        case _:
            raise UserError(f'model.rotary_scaling={scaling}: not known')
    return frequencies.astype(np.float32)


def _length(scaling: tuple[str | float, ...]) -> float:
    """Of turned unit vectors."""
    return float(scaling[-1]) if scaling[:1] == ('yarn',) else 1.0
