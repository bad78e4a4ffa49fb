"""Pooling: one vector per text from the states of packed rows."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cpt_jax.runtime.mesh import BATCH


def normalize(e: jax.Array) -> jax.Array:
    """Normalizes float32[..., E] to unit length."""
    return e * jax.lax.rsqrt(jnp.sum(e**2, -1, keepdims=True) + 1e-12)


def pick(h_RxSx: jax.Array, eos_BxT: jax.Array) -> jax.Array:
    """Picks the elements of rows [R, S, ...] at given positions; returns [B, T, ...].

    Args:
      h_RxSx: rows, split over the batch axes.
      eos_BxT: int32, position of each element to pick, as row * S + column within a device's rows;
        each device picks only from its own rows.
    """
    rest = jax.typeof(h_RxSx).sharding.spec[2:]

    @partial(
        jax.shard_map, in_specs=(P(BATCH, None, *rest), P(BATCH)), out_specs=P(BATCH, None, *rest)
    )
    def pick_on_shard(h: jax.Array, eos: jax.Array) -> jax.Array:
        return h.reshape(-1, *h.shape[2:])[eos]

    return pick_on_shard(h_RxSx, eos_BxT)


def average_texts(
    h_RxSxD: jax.Array,
    segments_RxS: jax.Array,
    eos_BxT: jax.Array,
    is_pooled_RxS: jax.Array | None = None,
) -> jax.Array:
    """Returns the mean of the states of each text, float32[B, T, D].

    Args:
      h_RxSxD: states.
      segments_RxS: int32, index of each token's text within its device's rows, from 1; 0 is
        padding.
      eos_BxT: int32, any position within the text, as row * S + column within a device's rows.
      is_pooled_RxS: bool, whether the mean includes the token; None: it includes all.
    """
    # Tokens that are left out count as padding.
    pooled_RxS = segments_RxS
    if is_pooled_RxS is not None:
        pooled_RxS = jnp.where(is_pooled_RxS, segments_RxS, 0)

    @partial(jax.shard_map, in_specs=(P(BATCH),) * 4, out_specs=P(BATCH))
    def average_on_shard(
        h_RxSxD: jax.Array, pooled_RxS: jax.Array, segments_RxS: jax.Array, eos_BxT: jax.Array
    ) -> jax.Array:
        segments = pooled_RxS.reshape(-1)
        h = h_RxSxD.reshape(len(segments), -1).astype(jnp.float32)
        ones = jnp.ones_like(segments, jnp.float32)
        total, count = (
            jax.ops.segment_sum(values, segments, eos_BxT.size + 1) for values in (h, ones)
        )
        return (total / jnp.maximum(count, 1)[:, None])[segments_RxS.reshape(-1)[eos_BxT]]

    return average_on_shard(h_RxSxD, pooled_RxS, segments_RxS, eos_BxT)


class Pooling(NamedTuple):
    """A way to compute the vector of a text from its states.

    Attributes:
      description: description stored in the settings of an evaluation.
      flags: names accepted by --pooling.
      mode: name in sentence-transformers.
      is_first_token: whether the vector is the state at the first token; False: at the closing
        delimiter or last token. Used only if `reduce` is None.
      reduce: (float[R, S, D] states, int32[R, S] segments, int32[B, T] positions) -> float32[B, T,
        D]. Only for models that leave their prompt out of the pooling, it gets a fourth argument:
        bool[R, S], whether a token is pooled. None: the vector is a single state, so that the last
        layer skips most of its work.
    """

    description: str
    flags: tuple[str, ...]
    mode: str
    is_first_token: bool = False
    reduce: Callable[..., jax.Array] | None = None


# Poolings by their names in `model.pooling`.
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
        reduce=average_texts,
    ),
}
