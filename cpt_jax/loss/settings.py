"""The settings of the losses for one batch, whose pairs all come from one source."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

# A setting that all sources share is a number, so that the program has no term with weight 0.
Weight = float | jax.Array


class LossSettings(NamedTuple):
    """What a batch is trained on.

    Attributes:
      infonce: weight of InfoNCE.
      xy, yx: weights of its two directions, whose sum is 1.
      in_batch: whether the texts of other pairs are negatives; None: in every batch.
      terms: weight of each term by name.
    """

    infonce: Weight
    xy: Weight
    yx: Weight
    in_batch: jax.Array | None
    terms: Mapping[str, Weight]


def weigh(weight: Weight, value: jax.Array) -> jax.Array:
    """Returns the product of a weight and a loss. The number 0 gives a constant, so that no
    gradient is computed.
    """
    if not isinstance(weight, float):
        return weight * value
    if weight == 0:
        return jnp.zeros_like(value)
    return value if weight == 1 else weight * value
