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
from cpt_jax.loss.infonce import MAX_LOG_SCALE, InfoNCE, Metrics
from cpt_jax.mesh import BATCH
from cpt_jax.model.dropout import token_keys
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.parameter import constant, gathered_once, parameter
from cpt_jax.model.shape import Shape

# Parameters a device: 8 GB of weights and gradient, beside the optimizer's state. Larger models sum per layer, where it overlaps.
ONCE = 1_000_000_000


class Params(nnx.Module):
    """All that is trained."""

    def __init__(self, shape: Shape, loss: InfoNCE, sources: int, rngs: nnx.Rngs):
        self.encoder = Encoder(shape, rngs)
        each = [(sources, None)] if loss.temperature_per_source else []
        self.log_scale = parameter(rngs, constant(-math.log(loss.initial_temperature)), *each)


class TrainState(NamedTuple):
    """All that a step changes."""

    step: jax.Array
    params: Params
    optimizer: optax.OptState


def init_state(shape: Shape, loss: InfoNCE, optimizer: optax.GradientTransformation, seed: int, sources: int = 1) -> TrainState:
    """A fresh state. Call it under jax.jit in the mesh; under jax.eval_shape it gives shapes, dtypes and shardings alone."""
    params = Params(shape, loss, sources, nnx.Rngs(seed))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def encode(encoder: Encoder, batch: Batch, key: jax.Array | None = None) -> jax.Array:
    """float32[B, T, D]: the unit vectors of all texts of a batch, chunk after chunk.

    With several chunks the activations of one are alive at a time and computed again in the backward pass (gradient caching, arXiv
    2101.06983): the loss still sees the whole batch, and its gradient is that of the whole batch. With a key there is dropout.
    """
    chunks = batch.tokens_CxRxS.shape[0]

    def encode_chunk(encoder: Encoder, number: int | jax.Array, rows: tuple[jax.Array, ...]) -> jax.Array:
        keys_RxS = None if key is None else token_keys(key, text_numbers(batch, number, rows[1]), rows[2])
        return encoder(*rows, keys_RxS)

    rows = batch[:4]
    if chunks == 1:
        return encode_chunk(encoder, 0, tuple(array[0] for array in rows))
    encoder = gathered_once(encoder) if reduce_once(encoder) else encoder
    chunk = jax.checkpoint(lambda nothing, numbered: (nothing, encode_chunk(encoder, *numbered)), prevent_cse=False)
    _, e_CxBxTxD = jax.lax.scan(chunk, None, (jnp.arange(chunks), rows))
    return merge_chunks(e_CxBxTxD)


def text_numbers(batch: Batch, chunk: int | jax.Array, segments_RxS: jax.Array) -> jax.Array:
    """int32[R, S]: the number in the batch of the text that a token of a chunk belongs to: the same in every layout (data/batch.py)."""
    chunks, pairs, texts = batch.ids_CxBxT.shape
    parts = math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in BATCH)
    rows = segments_RxS.shape[0]
    part_Rx1 = jnp.arange(rows)[:, None] // (rows // parts)
    return (part_Rx1 * chunks + chunk) * (pairs // parts * texts) + segments_RxS - 1


def reduce_once(encoder: Encoder) -> bool:
    """Is the gradient of a chunked step summed over the devices once, after all chunks, instead of for every chunk and layer?

    Where it is, each device holds the weights and their gradient unsharded but for tensor: 8 bytes a parameter, for at most ONCE of them.
    """
    tensor = jax.sharding.get_abstract_mesh().shape['tensor']
    return sum(leaf.size for leaf in jax.tree.leaves(encoder)) <= ONCE * tensor


def merge_chunks(a_CxBx: jax.Array) -> jax.Array:
    """[C, B, ...] -> [B * C, ...], chunks innermost, so that every device keeps its own pairs."""
    a_BxCx = a_CxBx.swapaxes(0, 1)
    return jax.lax.reshape(a_BxCx, (a_BxCx.shape[0] * a_BxCx.shape[1], *a_BxCx.shape[2:]), out_sharding=P(BATCH))


def make_step(
    loss: InfoNCE, optimizer: optax.GradientTransformation, schedule: optax.Schedule, seed: int
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The training step; `jax.jit` it with the state donated. Which units drop out is a function of (seed, step)."""

    def objective(params: Params, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, Metrics]:
        log_scale = params.log_scale[...]
        log_scale = log_scale[batch.source] if loss.temperature_per_source else log_scale
        value, metrics = loss(encode(params.encoder, batch, key), merge_chunks(batch.ids_CxBxT), log_scale)
        return value, metrics | {'scale': jnp.exp(log_scale)}

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step) if state.params.encoder.shape.dropout else None
        (value, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(state.params, batch, key)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        params.log_scale[...] = jnp.minimum(params.log_scale[...], MAX_LOG_SCALE)
        metrics |= {
            'loss': value,
            'grad_norm': optax.tree.norm(gradient),
            'param_norm': optax.tree.norm(params),  # after the step: what a checkpoint would hold
            'learning_rate': schedule(state.step),
            'tokens': jnp.sum(batch.segments_CxRxS > 0),
        }
        return TrainState(state.step + 1, params, optimizer_state), metrics

    return step
