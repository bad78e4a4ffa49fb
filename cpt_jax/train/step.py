"""One step: Batch, TrainState -> TrainState, metrics."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import PartitionSpec as P

from cpt_jax.data.batch import Batch
from cpt_jax.mesh import BATCH
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.parameter import constant, parameter
from cpt_jax.model.shape import Shape
from cpt_jax.train.loss import MAX_LOG_SCALE, InfoNCE, Metrics


class Params(nnx.Module):
    """All that is trained."""

    def __init__(self, shape: Shape, initial_temperature: float, rngs: nnx.Rngs):
        self.encoder = Encoder(shape, rngs)
        self.log_scale = parameter(rngs, constant(-math.log(initial_temperature)))


class TrainState(NamedTuple):
    """All that a step changes."""

    step: jax.Array
    params: Params
    optimizer: optax.OptState


def init_state(shape: Shape, loss: InfoNCE, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """A fresh state. Call it under jax.jit in the mesh; under jax.eval_shape it gives shapes, dtypes and shardings alone."""
    params = Params(shape, loss.initial_temperature, nnx.Rngs(seed))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def encode(encoder: Encoder, batch: Batch) -> jax.Array:
    """float32[B, T, D]: the unit vectors of all texts of a batch, chunk after chunk.

    With several chunks the activations of one are alive at a time and computed again in the backward pass (gradient caching, arXiv
    2101.06983): the loss still sees the whole batch, and its gradient is that of the whole batch.
    """
    rows = batch[:4]
    if rows[0].shape[0] == 1:
        return encoder(*(array[0] for array in rows))
    chunk = jax.checkpoint(lambda carry, rows: (carry, encoder(*rows)), prevent_cse=False)
    _, e_CxBxTxD = jax.lax.scan(chunk, None, rows)
    return merge_chunks(e_CxBxTxD)


def merge_chunks(a_CxBx: jax.Array) -> jax.Array:
    """[C, B, ...] -> [B * C, ...], chunks innermost, so that every device keeps its own pairs."""
    a_BxCx = a_CxBx.swapaxes(0, 1)
    return jax.lax.reshape(a_BxCx, (a_BxCx.shape[0] * a_BxCx.shape[1], *a_BxCx.shape[2:]), out_sharding=P(BATCH))


def make_step(
    loss: InfoNCE, optimizer: optax.GradientTransformation, schedule: optax.Schedule
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The training step; `jax.jit` it with the state donated."""

    def objective(params: Params, batch: Batch) -> tuple[jax.Array, Metrics]:
        return loss(encode(params.encoder, batch), merge_chunks(batch.ids_CxBxT), params.log_scale[...])

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        (value, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(state.params, batch)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        params.log_scale[...] = jnp.minimum(params.log_scale[...], MAX_LOG_SCALE)
        metrics |= {
            'loss': value,
            'scale': jnp.exp(state.params.log_scale[...]),
            'grad_norm': optax.tree.norm(gradient),
            'param_norm': optax.tree.norm(params),  # after the step: what a checkpoint would hold
            'learning_rate': schedule(state.step),
            'tokens': jnp.sum(batch.segments_CxRxS > 0),
        }
        return TrainState(state.step + 1, params, optimizer_state), metrics

    return step
