"""Initializers of parameters."""

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
    """Returns an initializer of independent normal values with mean 0."""
    return jax.nn.initializers.normal(std)


def constant(value: float) -> Initializer:
    """Returns an initializer that sets every element to `value`."""

    def init(
        key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, out_sharding: P
    ) -> jax.Array:
        del key
        return jnp.full(shape, value, dtype, out_sharding=out_sharding)

    return init


def compute_residual_std(config: EncoderConfig) -> float:
    """Returns the initial standard deviation of matrices whose output is added to the residual
    stream.

    As in GPT-2, it is 0.02 divided by the square root of the number of additions.
    """
    return 0.02 / (2 * config.layers) ** 0.5


def choose_value_and_out_initializers(config: EncoderConfig) -> tuple[Initializer, Initializer]:
    """Returns the initializers of the value and of the output projection, for `config.init`.

    Raises:
      UserError: 'passthrough' needs heads that fill the width.
    """
    if config.init == 'gpt2':
        return normal(0.02), normal(compute_residual_std(config))
    if config.kv_heads != config.heads or config.heads * config.head_width != config.width:
        raise UserError(
            'model.init=passthrough needs model.kv_heads = model.heads and model.heads x '
            'model.head_width = model.width'
        )
    return init_passthrough, init_passthrough


def init_passthrough(
    key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, out_sharding: P
) -> jax.Array:
    """Initializes a value or output projection of every layer to the identity.

    An untrained model attends uniformly, so with identity projections the EOS state is initially
    the mean of the token embeddings of its text. Texts with common words then have similar vectors
    before the first step, and InfoNCE starts from a useful ranking. With GPT-2's 0.02 in both
    projections, the attention output is an order of magnitude smaller than the embedding of the
    closing delimiter, all vectors start nearly equal, and training spends its first pairs on
    separating them (docs/benchmarks.md compares both). Models that start from pretrained weights do
    not need this.
    """
    del key
    stack, width = shape[:-3], math.isqrt(math.prod(shape[-3:]))
    identity = jnp.broadcast_to(jnp.eye(width, dtype=dtype), (*stack, width, width))
    return jax.reshard(jax.lax.reshape(identity, shape), out_sharding)
