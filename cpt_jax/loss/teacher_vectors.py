"""Losses against a teacher's vectors of the same texts (arXiv 2301.12005)."""

import jax
import jax.numpy as jnp

from cpt_jax.loss.candidates import einsum_float32
from cpt_jax.loss.term_inputs import TermInputs


def compute_teacher_cosine(inputs: TermInputs) -> jax.Array:
    """Returns the mean over texts of 1 minus the cosine of the model's and the teacher's vector,
    which have the same dimension.
    """
    cosine_BxT = jnp.sum(inputs.e_BxTxD.astype(jnp.float32) * inputs.teacher_vectors, axis=-1)
    return inputs.average_texts(1 - cosine_BxT)


def compute_teacher_mse(inputs: TermInputs) -> jax.Array:
    """Returns the mean over texts and dimensions of the squared difference between the model's
    vector, after the learned linear map, and the teacher's.
    """
    assert inputs.teacher_map is not None
    e_BxTxD = inputs.e_BxTxD.astype(jnp.float32)
    mapped_BxTxW = einsum_float32('btd,dw->btw', e_BxTxD, inputs.teacher_map)
    difference_BxTxW = mapped_BxTxW - inputs.teacher_vectors
    return inputs.average_texts(jnp.mean(jnp.square(difference_BxTxW), axis=-1))
