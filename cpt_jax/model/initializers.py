"""The values that parameters start with."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cpt_jax.model.config import EncoderConfig
from cpt_jax.runtime.errors import UserError

# (key, shape, dtype, sharding) -> array
Initializer = Callable[..., jax.Array]


def normal(std: float) -> Initializer:
    """Independent normal values."""
    return jax.nn.initializers.normal(std)


def constant(value: float) -> Initializer:
    """The same value everywhere."""

    def init(
        key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, out_sharding: P
    ) -> jax.Array:
        del key
        return jnp.full(shape, value, dtype, out_sharding=out_sharding)

    return init


def residual_std(config: EncoderConfig) -> float:
    """GPT-2's rule: what is added to the residual stream starts smaller by the square root of the
    number of additions.
    """
    return 0.02 / (2 * config.layers) ** 0.5


def value_and_out(config: EncoderConfig) -> tuple[Initializer, Initializer]:
    """How the value and output projections start; see `passthrough`."""
    if config.init == 'gpt2':
        return normal(0.02), normal(residual_std(config))
    if config.kv_heads != config.heads or config.heads * config.head_width != config.width:
        raise UserError(
            'model.init=passthrough needs model.kv_heads = model.heads and model.heads x '
            'model.head_width = model.width'
        )
    return passthrough, passthrough


def passthrough(
    key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, out_sharding: P
) -> jax.Array:
    """Starts a value or output projection of every layer as the identity.

    A fresh model attends evenly, so with the identity between them the EOS state starts as the mean
    of its text's token embeddings: texts that share words have close vectors before the first step,
    and InfoNCE has something to sharpen. With GPT-2's 0.02 in both, what passes is smaller than the
    closing delimiter's own embedding by an order of magnitude, all vectors start alike, and
    training spends its first pairs on telling them apart (the README has both ends). A model that
    starts from trained weights needs none of this.
    """
    del key
    stack, width = shape[:-3], math.isqrt(math.prod(shape[-3:]))
    identity = jnp.broadcast_to(jnp.eye(width, dtype=dtype), (*stack, width, width))
    return jax.reshard(jax.lax.reshape(identity, shape), out_sharding)
