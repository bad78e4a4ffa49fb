"""Dropout that belongs to a token, not to its place: the same on any mesh, in any row and in any chunk."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Noise(NamedTuple):
    """Where the dropout of a layer comes from.

    Attributes:
      keys: of the tokens, [R, S] or [B, T]; None: nothing is dropped.
      layer: its number.
    """

    keys: jax.Array | None
    layer: int | jax.Array


def token_keys(key: jax.Array, texts_RxS: jax.Array, positions_RxS: jax.Array) -> jax.Array:
    """A random key for each token, [R, S]: a function of the step's key, the number of its text in the batch, and its position there."""
    fold = lambda text, position: jax.random.fold_in(jax.random.fold_in(key, text), position)  # noqa: E731
    return jax.vmap(jax.vmap(fold))(texts_RxS, positions_RxS)


def dropout(h: jax.Array, keys: jax.Array | None, rate: float, site: int | jax.Array) -> jax.Array:
    """Sets a share `rate` of units to zero and scales the others up, so that the mean stays (Srivastava et al. 2014).

    Args:
      h: float[.., .., D], of R x S tokens or of B x T texts.
      keys: of the tokens; None: nothing is dropped.
      site: a number of its own for each place in the model, so that each drops other units.
    """
    if keys is None or not rate:
        return h
    keep = jax.vmap(jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, site), 1 - rate, h.shape[2:])))(keys)
    where = jax.typeof(h).sharding
    if jax.typeof(keep).sharding != where:  # units that lie over the tensor axis: all are drawn, so that a mesh changes nothing
        keep = jax.reshard(keep, where.spec)
    return jnp.where(keep, h / (1 - rate), 0).astype(h.dtype)
