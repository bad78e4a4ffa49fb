"""One step: Batch, TrainState -> TrainState, metrics; and its compiled programs."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from cpt_jax.data.batch import Batch
from cpt_jax.loss.infonce import Metrics
from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.parameter import divided, joined
from cpt_jax.runtime.mesh import shardings
from cpt_jax.training.objective import Objective, Params
from cpt_jax.training.resolve import Resolved


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
    config: EncoderConfig,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    seed: int,
    lora: LoRA | None = None,
) -> TrainState:
    """A fresh state. Call it under jax.jit in the mesh; under jax.eval_shape it gives shapes,
    dtypes and shardings alone.
    """
    rngs = nnx.Rngs(seed)
    params, frozen = objective.init(config, rngs), None
    if lora and lora.rank:
        params.encoder = lora.adapted(params.encoder, rngs)
        params, frozen = divided(params)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), frozen)


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    seed: int,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The training step; `jax.jit` it with the state donated. Which units drop out is a function of
    (seed, step).
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = (
            jax.random.fold_in(jax.random.key(seed), state.step)
            if state.params.encoder.drops
            else None
        )

        def on_all(params):
            return objective(joined(params, state.frozen), batch, key)

        # Kernels write their backward pass down after the encoder has returned.
        with state.params.encoder.config.precision():
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


class StepPrograms:
    """The step, compiled once for each number of rows that a batch can have (data/batch.py:
    Layout.smaller_row_counts).
    """

    def __init__(self, run: Resolved):
        self._step = make_step(run.objective, run.optimizer, run.schedule, run.seed)
        self._compiled: dict[int, jax.stages.Compiled] = {}

    def __call__(self, state: TrainState, batch: Batch) -> jax.stages.Compiled:
        """Returns (state, batch) -> (state, metrics) for such a batch, compiled if it is the first.
        The program takes over the memory of the state.
        """
        rows = batch.tokens_CxRxS.shape[1]
        if rows not in self._compiled:
            step = jax.jit(self._step, donate_argnums=0, out_shardings=(shardings(state), None))
            self._compiled[rows] = step.lower(state, batch).compile()
        return self._compiled[rows]
