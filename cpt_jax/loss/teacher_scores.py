"""Losses against scores that a teacher or people gave to the texts of each pair.

The scores of the model are cosines of x with y and with the pair's own hard negatives. The
teacher's scores are divided by `loss.teacher_temperature`.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cpt_jax.loss.candidates import MASKED_LOGIT
from cpt_jax.loss.term_inputs import TermInputs


def compute_kl(inputs: TermInputs) -> jax.Array:
    """Returns the mean over pairs of KL(teacher || model), in nats, of the softmax over y and the
    pair's hard negatives.

    It is DistillKLDivLoss of sentence-transformers without the factor `temperature ** 2`.
    """
    cosine_BxU, present_BxU = inputs.compare_with_listed()
    student_BxU = jnp.where(present_BxU, inputs.scale * cosine_BxU, MASKED_LOGIT)
    teacher_BxU = jnp.where(present_BxU, inputs.teacher_scores, MASKED_LOGIT)
    log_student_BxU = jax.nn.log_softmax(student_BxU)
    log_teacher_BxU = jax.nn.log_softmax(teacher_BxU)
    difference_BxU = jnp.where(present_BxU, log_teacher_BxU - log_student_BxU, 0)
    total = jnp.sum(jnp.where(present_BxU, jnp.exp(log_teacher_BxU), 0) * difference_BxU)
    return total / jnp.maximum(jnp.sum(present_BxU[:, 0]), 1)


def compute_margin_mse(inputs: TermInputs) -> jax.Array:
    """Returns the mean over hard negatives of the squared difference between the margins of the
    model and of the teacher (arXiv 2010.02666). A margin is the score of y minus that of the hard
    negative.
    """
    cosine_BxU, present_BxU = inputs.compare_with_listed()
    margin_BxM = cosine_BxU[:, :1] - cosine_BxU[:, 1:]
    scores_BxU = inputs.teacher_scores
    wanted_BxM = scores_BxU[:, :1] - scores_BxU[:, 1:]
    squared_BxM = jnp.where(present_BxU[:, 1:], jnp.square(margin_BxM - wanted_BxM), 0)
    return jnp.sum(squared_BxM) / jnp.maximum(jnp.sum(present_BxU[:, 1:]), 1)


def compute_cosent(inputs: TermInputs) -> jax.Array:
    """Returns CoSENT: log(1 + sum of exp(scale (cos_j - cos_i)) over all i, j of the batch such
    that pair i has a higher grade than pair j.

    The grade of a pair is the first of its scores.
    """
    cosine_BxU, present_BxU = inputs.compare_with_listed()
    # B numbers each, which every device sorts: B log B instead of B x B operations.
    logit_B, grade_B, present_B = (
        jax.reshard(array, P())
        for array in (inputs.scale * cosine_BxU[:, 0], inputs.scores[:, 0], present_BxU[:, 0])
    )
    order_B = jnp.argsort(jnp.where(present_B, grade_B, jnp.inf))
    logit_B, present_B = logit_B[order_B], present_B[order_B]
    grade_B = jnp.where(present_B, grade_B[order_B], jnp.inf)
    negated_B = jnp.where(present_B, -logit_B, MASKED_LOGIT)
    # Element i is the log of the sum over pairs i, i + 1, ... of exp(-logit).
    suffix_B = jax.lax.cumlogsumexp(negated_B, reverse=True)
    suffix_B = jnp.append(suffix_B, jnp.float32(MASKED_LOGIT))
    first_higher_B = jnp.searchsorted(grade_B, grade_B, side='right')
    terms_B = jnp.where(present_B, logit_B + suffix_B[first_higher_B], MASKED_LOGIT)
    return jax.nn.logsumexp(jnp.append(terms_B, jnp.float32(0)))
