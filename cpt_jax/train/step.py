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
from cpt_jax.loss.infonce import Metrics
from cpt_jax.mesh import BATCH
from cpt_jax.model.dropout import token_keys
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.lora import LoRA
from cpt_jax.model.parameter import Frozen, divided, gathered_once, is_variable, joined
from cpt_jax.model.shape import Shape
from cpt_jax.train.objective import Objective, Params

# Parameters a device: 8 GB of weights and gradient, beside the optimizer's state. Larger models sum per layer, where it overlaps.
ONCE = 1_000_000_000


class TrainState(NamedTuple):
    """All that a step changes, and what LoRA leaves as it is.

    Attributes:
      params: what is trained, with None in place of what is not.
      frozen: the same the other way round; None where all is trained. Checkpoints are without it.
    """

    step: jax.Array
    params: Params
    optimizer: optax.OptState
    frozen: Params | None = None

    @property
    def whole(self) -> Params:
        """All parameters."""
        return joined(self.params, self.frozen)

    @property
    def encoder(self) -> Encoder:
        """With all of its weights."""
        return self.whole.encoder


def init_state(
    shape: Shape, objective: Objective, optimizer: optax.GradientTransformation, seed: int, lora: LoRA | None = None
) -> TrainState:
    """A fresh state. Call it under jax.jit in the mesh; under jax.eval_shape it gives shapes, dtypes and shardings alone."""
    rngs = nnx.Rngs(seed)
    params, frozen = objective.init(shape, rngs), None
    if lora and lora.rank:
        params.encoder = lora.adapted(params.encoder, rngs)
        params, frozen = divided(params)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), frozen)


def encode(encoder: Encoder, batch: Batch, key: jax.Array | None = None) -> jax.Array:
    """float32[B, T, D]: the unit vectors of all texts of a batch, chunk after chunk.

    The loss sees the whole batch however many chunks there are (gradient caching, arXiv 2101.06983). With a key there is dropout.
    """
    return in_chunks(encoder, batch, key, lambda encoder, rows, keys_RxS: encoder(*rows, keys_RxS), merge_chunks)


def in_chunks(
    encoder: Encoder,
    batch: Batch,
    key: jax.Array | None,
    compute: Callable[[Encoder, tuple[jax.Array, ...], jax.Array | None], jax.Array],
    merge: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """What an encoder makes of a batch, chunk after chunk.

    With several chunks the activations of one are alive at a time and computed again in the backward pass; the gradient is that of the
    whole batch.

    Args:
      key: for dropout; None: there is none.
      compute: of the encoder, the rows of a chunk (as for `Encoder.states`) and the random keys of its tokens.
      merge: of what `compute` gives for each of several chunks, stacked.
    """
    chunks = batch.tokens_CxRxS.shape[0]

    def of_chunk(encoder: Encoder, number: int | jax.Array, rows: tuple[jax.Array, ...]) -> jax.Array:
        keys_RxS = None if key is None else token_keys(key, text_numbers(batch, number, rows[1]), rows[2])
        return compute(encoder, rows, keys_RxS)

    rows = batch[:4]
    if chunks == 1:
        return of_chunk(encoder, 0, tuple(array[0] for array in rows))
    encoder = gathered_once(encoder) if reduce_once(encoder) else encoder
    chunk = jax.checkpoint(lambda nothing, numbered: (nothing, of_chunk(encoder, *numbered)), prevent_cse=False)
    return merge(jax.lax.scan(chunk, None, (jnp.arange(chunks), rows))[1])


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
    What is frozen has no gradient, and is gathered layer by layer.
    """
    tensor = jax.sharding.get_abstract_mesh().shape['tensor']
    trained = [weight for weight in jax.tree.leaves(encoder, is_leaf=is_variable) if not isinstance(weight, Frozen)]
    return sum(weight[...].size for weight in trained) <= ONCE * tensor


def merge_chunks(a_CxBx: jax.Array) -> jax.Array:
    """[C, B, ...] -> [B * C, ...], chunks innermost, so that every device keeps its own pairs."""
    a_BxCx = a_CxBx.swapaxes(0, 1)
    return jax.lax.reshape(a_BxCx, (a_BxCx.shape[0] * a_BxCx.shape[1], *a_BxCx.shape[2:]), out_sharding=P(BATCH))


def make_step(
    objective: Objective, optimizer: optax.GradientTransformation, schedule: optax.Schedule, seed: int
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The training step; `jax.jit` it with the state donated. Which units drop out is a function of (seed, step)."""

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step) if state.params.encoder.drops else None
        on_all = lambda params: objective(joined(params, state.frozen), batch, key)  # noqa: E731
        with state.params.encoder.shape.precision():  # kernels write their backward pass down after the encoder has returned
            (value, metrics), gradient = jax.value_and_grad(on_all, has_aux=True)(state.params)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        objective.clip(params)
        metrics |= {
            'loss': value,
            'grad_norm': optax.tree.norm(gradient),
            'param_norm': optax.tree.norm(params),  # after the step: what a checkpoint would hold
            'learning_rate': schedule(state.step),
            'tokens': jnp.sum(batch.segments_CxRxS > 0),
        }
        return TrainState(state.step + 1, params, optimizer_state, state.frozen), metrics

    return step
