"""Terms that a config can add to InfoNCE by name in `loss.terms`."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from cpt_jax.loss.teacher_scores import compute_cosent, compute_kl, compute_margin_mse
from cpt_jax.loss.teacher_vectors import compute_teacher_cosine, compute_teacher_mse
from cpt_jax.loss.term_inputs import TermInputs
from cpt_jax.loss.uniformity import compute_uniformity
from cpt_jax.runtime.errors import UserError

# (unit vectors [B, T, D], ids of the texts [B, T, Z], mesh axes that split B) -> float32 scalar.
Term = Callable[[jax.Array, jax.Array, tuple[str, ...]], jax.Array]

TERMS: dict[str, Term] = {'uniformity': compute_uniformity}

# Values of TargetTerm.needs.
SCORES, GRADE, VECTORS = 'scores', 'score', 'teacher'


class TargetTerm(NamedTuple):
    """A term that compares a batch with its targets.

    Attributes:
      compute: function of the inputs that returns a float32 scalar.
      needs: SCORES: scores of y and the hard negatives of each pair; GRADE: a score of each pair;
        VECTORS: a teacher's vectors.
    """

    compute: Callable[[TermInputs], jax.Array]
    needs: str


TARGET_TERMS: dict[str, TargetTerm] = {
    'kl': TargetTerm(compute_kl, SCORES),
    'margin_mse': TargetTerm(compute_margin_mse, SCORES),
    'cosent': TargetTerm(compute_cosent, GRADE),
    'teacher_cosine': TargetTerm(compute_teacher_cosine, VECTORS),
    'teacher_mse': TargetTerm(compute_teacher_mse, VECTORS),
}


def check_terms(key: str, terms: Sequence[tuple[str, float]]) -> None:
    """Raises UserError unless a config value is a sequence of names of terms and their weights.

    Args:
      key: the config key.
      terms: its value.
    """
    known = [*TERMS, *TARGET_TERMS]
    for term in terms:
        match term:
            case (str(name), int() | float()):
                if name not in known:
                    raise UserError(f'{key}: unknown term {name!r}; choose from {", ".join(known)}')
                if not math.isfinite(term[1]):
                    raise UserError(f'{key}={terms!r}: the weight of {name!r} must be finite')
            case _:
                raise UserError(
                    f'{key}={terms!r}: must be pairs of a name and a weight, such as '
                    f'(("uniformity", 0.1),)'
                )


def sum_weights(terms: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Returns the weight of each term by name; the weights of a repeated term are added."""
    weights: dict[str, float] = {}
    for name, weight in terms:
        weights[name] = weights.get(name, 0.0) + float(weight)
    return weights
