"""The training step (TrainState, Batch) -> (TrainState, metrics), and its compiled programs."""

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
from cpt_jax.model.parameter import join_frozen, split_frozen
from cpt_jax.runtime.compiler_options import compile_with_options
from cpt_jax.runtime.mesh import shardings
from cpt_jax.training.objective import Objective, Params
from cpt_jax.training.resolve import Resolved


class TrainState(NamedTuple):
    """The training state.

    Attributes:
      step: int32 scalar, number of steps done.
      params: all parameters, with None in place of frozen ones.
      optimizer: state of the optimizer, for `params`.
      frozen: all parameters, with None in place of trained ones; None if all are trained (without
        LoRA). Not stored in checkpoints.
    """

    step: jax.Array
    params: Params
    optimizer: optax.OptState
    frozen: Params | None = None

    @property
    def all_params(self) -> Params:
        """All parameters, trained and frozen."""
        return join_frozen(self.params, self.frozen)

    @property
    def encoder(self) -> Encoder:
        """The encoder, with its trained and frozen weights."""
        return self.all_params.encoder


def init_state(
    config: EncoderConfig,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    seed: int,
    lora: LoRA | None = None,
) -> TrainState:
    """Returns a randomly initialized state.

    Call it under jax.jit with the mesh set, or under jax.eval_shape for shapes, dtypes and
    shardings only.
    """
    rngs = nnx.Rngs(seed)
    params, frozen = objective.init(config, rngs), None
    if lora and lora.rank:
        params.encoder = lora.add_adapters(params.encoder, rngs)
        params, frozen = split_frozen(params)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), frozen)


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    seed: int,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns the training step, to be compiled by `jax.jit` with the state donated.

    The random key of dropout is a function of (seed, step).
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = None
        if state.params.encoder.has_dropout:
            key = jax.random.fold_in(jax.random.key(seed), state.step)

        def compute_loss(params):
            return objective(join_frozen(params, state.frozen), batch, key)

        # The backward pass of kernels is traced after the encoder has returned, so the matmul
        # precision must be set here as well.
        with state.params.encoder.config.matmul_precision():
            grad_function = jax.value_and_grad(compute_loss, has_aux=True)
            (loss, metrics), gradient = grad_function(state.params)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        objective.clip(params)
        metrics |= {
            'loss': loss,
            'grad_norm': optax.tree.norm(gradient),
            'param_norm': optax.tree.norm(params),  # after the update, as in a checkpoint
            'learning_rate': schedule(state.step),
            'tokens': jnp.sum(batch.segments_JxRxS > 0),
        }
        return TrainState(state.step + 1, params, optimizer_state, state.frozen), metrics

    return step


class StepPrograms:
    """The training step, compiled once for each number of rows that a batch can have.

    See `Layout.smaller_row_counts` in data/batch.py.
    """

    def __init__(self, run: Resolved):
        self._step = make_step(run.objective, run.optimizer, run.schedule, run.seed)
        self._options = run.train.parsed_compiler_options
        self._compiled: dict[int, jax.stages.Compiled] = {}

    def __call__(self, state: TrainState, batch: Batch) -> jax.stages.Compiled:
        """Returns the program (state, batch) -> (state, metrics) for batches of this shape.

        The first call for a shape compiles the program. The program donates the state: it reuses
        its memory.
        """
        rows = batch.tokens_JxRxS.shape[1]
        if rows not in self._compiled:
            step = jax.jit(self._step, donate_argnums=0, out_shardings=(shardings(state), None))
            self._compiled[rows] = compile_with_options(step.lower(state, batch), self._options)
        return self._compiled[rows]
