"""Terms that a config can add to InfoNCE by name in `loss.terms`."""

from collections.abc import Callable

import jax

from cpt_jax.loss.uniformity import compute_uniformity

# (unit vectors [B, T, D], ids of the texts [B, T, Z], mesh axes that split B) -> float32 scalar.
Term = Callable[[jax.Array, jax.Array, tuple[str, ...]], jax.Array]

TERMS: dict[str, Term] = {'uniformity': compute_uniformity}
