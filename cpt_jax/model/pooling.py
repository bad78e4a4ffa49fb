"""One vector a text, from the states of packed rows."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cpt_jax.runtime.mesh import BATCH


def normalized(e: jax.Array) -> jax.Array:
    """float32[..., E] -> the same, of unit length."""
    return e * jax.lax.rsqrt(jnp.sum(e**2, -1, keepdims=True) + 1e-12)


def pick(h_RxSx: jax.Array, eos_BxT: jax.Array) -> jax.Array:
    """What stands [B, T, ...] at the given places of the rows [R, S, ...], each device from its own
    rows.
    """
    rest = jax.typeof(h_RxSx).sharding.spec[2:]

    @partial(
        jax.shard_map, in_specs=(P(BATCH, None, *rest), P(BATCH)), out_specs=P(BATCH, None, *rest)
    )
    def local(h: jax.Array, eos: jax.Array) -> jax.Array:
        return h.reshape(-1, *h.shape[2:])[eos]

    return local(h_RxSx, eos_BxT)


def mean_of_texts(h_RxSxD: jax.Array, segments_RxS: jax.Array, eos_BxT: jax.Array) -> jax.Array:
    """float32[B, T, D]: the mean of the states of each text, each device from its own rows;
    `eos_BxT` is any place within it.
    """

    @partial(jax.shard_map, in_specs=(P(BATCH), P(BATCH), P(BATCH)), out_specs=P(BATCH))
    def local(h_RxSxD: jax.Array, segments_RxS: jax.Array, eos_BxT: jax.Array) -> jax.Array:
        segments = segments_RxS.reshape(-1)
        h = h_RxSxD.reshape(len(segments), -1).astype(jnp.float32)
        ones = jnp.ones_like(segments, jnp.float32)
        total, count = (
            jax.ops.segment_sum(values, segments, eos_BxT.size + 1) for values in (h, ones)
        )
        return (total / jnp.maximum(count, 1)[:, None])[segments[eos_BxT]]

    return local(h_RxSxD, segments_RxS, eos_BxT)


class Pooling(NamedTuple):
    """How the states of a text become its vector.

    Attributes:
      description: what it is, for the settings of an evaluation.
      flags: its names for --pooling.
      mode: its name in sentence-transformers.
      is_first_token: whether a single state that counts is the one at the first token, and not the
        one at the closing delimiter or last token.
      reduce: (float[R, S, D] states, int32[R, S] segments, int32[B, T] places) -> float32[B, T, D];
        None if a single state counts, which spares the last layer most of its work.
    """

    description: str
    flags: tuple[str, ...]
    mode: str
    is_first_token: bool = False
    reduce: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None


# By their names in `model.pooling`.
POOLINGS = {
    'eos': Pooling(
        'state at the closing delimiter, or without one at the last token, after the final norm',
        ('eos', 'last'),
        'lasttoken',
    ),
    'first': Pooling(
        'state at the first token, after the final norm', ('cls',), 'cls', is_first_token=True
    ),
    'mean': Pooling(
        'mean of the states of all tokens, after the final norm',
        ('mean',),
        'mean',
        reduce=mean_of_texts,
    ),
}
