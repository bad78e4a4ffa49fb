"""Rotary position embeddings (RoFormer, arXiv 2104.09864)."""

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
    is_local: bool | jax.Array = False,
) -> jax.Array:
    """Rotates the first `rotary_width` dimensions of each head by their positions, in float32.

    Args:
      x_RxSxHxK: queries or keys.
      positions_RxS: int32, position of each token in its text.
      config: architecture, from which base, scaling and pairing of dimensions are read.
      is_local: whether the layer is local, and so uses the local base and scaling.
    """
    kinds = (
        (config.rotary_base, config.rotary_scaling),
        (config.local_rotary_base, config.local_rotary_scaling),
    )
    frequencies_W = _select_by_locality(
        is_local, *(compute_rotary_frequencies(config.rotary_width, *kind) for kind in kinds)
    )
    angles_RxSx1xW = (positions_RxS[..., None] * jnp.asarray(frequencies_W))[:, :, None]
    cos, sin = jnp.cos(angles_RxSx1xW), jnp.sin(angles_RxSx1xW)
    factors = [_get_attention_factor(scaling) for _, scaling in kinds]
    if factors != [1, 1]:
        cos, sin = (part * _select_by_locality(is_local, *factors) for part in (cos, sin))
    rotary, rest = jnp.split(x_RxSxHxK, [config.rotary_width], axis=-1)
    rotary = rotary.astype(jnp.float32)
    if config.rotary_pairs == 'halves':
        a, b = jnp.split(rotary, 2, axis=-1)
        rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    else:
        a, b = rotary[..., ::2], rotary[..., 1::2]
        rotated = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(rotary.shape)
    return jnp.concatenate([rotated.astype(x_RxSxHxK.dtype), rest], axis=-1)


def _select_by_locality(is_local: bool | jax.Array, full: T, near: T) -> T | jax.Array:
    """Returns `near` for a local layer, otherwise `full`."""
    if isinstance(is_local, bool):
        return near if is_local else full
    return jnp.where(is_local, near, full)


def compute_rotary_frequencies(
    width: int, base: float, scaling: tuple[str | float, ...]
) -> np.ndarray:
    """Returns the rotary frequencies in radians per position, float32[width / 2].

    Args:
      width: number of dimensions that are rotated.
      base: base of the frequencies.
      scaling: one of the following; 'llama3' and 'yarn' are computed as in transformers'
        modeling_rope_utils.
        (): no scaling (RoFormer).
        ('linear', factor): all frequencies are divided by the factor.
        ('llama3', factor, low, high, length), LLaMA 3.1: a frequency with fewer than `low` turns in
        `length` positions is divided by the factor, one with more than `high` turns is unchanged,
        and in between the two are interpolated linearly by the number of turns.
        ('yarn', factor, slow, fast, length, truncated, attention_factor), YaRN (arXiv 2309.00071):
        as llama3 with `slow` and `fast` for `low` and `high`, but interpolated linearly by the
        index of the frequency, between bounds that are rounded to integers if `truncated`; rotated
        vectors are multiplied by the attention factor.

    Raises:
      UserError: the scaling is not known.
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
            # 0.001: as in transformers, if both bounds are equal.
            full = 1 - np.clip((np.arange(half) - first) / (last - first or 0.001), 0, 1)
            frequencies *= full + (1 - full) / factor
        case _:
            raise UserError(
                f'model.rotary_scaling={scaling}: is not supported; use linear, llama3 or yarn'
            )
    return frequencies.astype(np.float32)


def _get_attention_factor(scaling: tuple[str | float, ...]) -> float:
    """Returns the factor by which rotated vectors are multiplied; 1 except for YaRN."""
    return float(scaling[-1]) if scaling[:1] == ('yarn',) else 1.0
