"""The inputs of the terms that compare a batch with its targets."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cpt_jax.loss.targets import Targets


class TermInputs(NamedTuple):
    """A batch of B pairs with T texts, of which U = T - 1 are y and hard negatives.

    Attributes:
      e_BxTxD: unit vectors of x, y and hard negatives.
      ids_BxTxZ: int32 ids of the texts; 0 for an absent text.
      scale: 1 / temperature, without a gradient: only InfoNCE trains the temperature.
      targets: what the vectors are compared with.
      teacher_temperature: number by which a teacher's scores are divided.
      teacher_map: float32[D, W], the learned linear map to the teacher's vectors, if there is one.
    """

    e_BxTxD: jax.Array
    ids_BxTxZ: jax.Array
    scale: jax.Array
    targets: Targets
    teacher_temperature: float
    teacher_map: jax.Array | None

    @property
    def present_BxT(self) -> jax.Array:
        """Whether there is a text; no text of an absent pair is present."""
        ids_BxT = self.ids_BxTxZ[..., 0]
        return (ids_BxT > 0) & (ids_BxT[:, :1] > 0)

    @property
    def scores(self) -> jax.Array:
        """float32[B, U], the scores as they are in the data."""
        assert self.targets.scores is not None
        return self.targets.scores

    @property
    def teacher_scores(self) -> jax.Array:
        """float32[B, U], the scores divided by their temperature."""
        return self.scores / self.teacher_temperature

    @property
    def teacher_vectors(self) -> jax.Array:
        """float32[B, T, W], the teacher's vectors."""
        assert self.targets.teacher is not None
        return self.targets.teacher

    def compare_with_listed(self) -> tuple[jax.Array, jax.Array]:
        """Returns float32[B, U], the cosines of x with y and its hard negatives, and bool[B, U],
        whether these texts are present.
        """
        e_BxTxD = self.e_BxTxD.astype(jnp.float32)
        return jnp.sum(e_BxTxD[:, :1] * e_BxTxD[:, 1:], axis=-1), self.present_BxT[:, 1:]

    def average_texts(self, value_BxT: jax.Array) -> jax.Array:
        """Returns the mean of a value over the texts that are present."""
        present_BxT = self.present_BxT
        total = jnp.sum(jnp.where(present_BxT, value_BxT, 0))
        return total / jnp.maximum(jnp.sum(present_BxT), 1)
