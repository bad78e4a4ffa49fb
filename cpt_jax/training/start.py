"""The state that a run begins its next step with."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from cpt_jax.model.encoder import Encoder
from cpt_jax.origin.earlier_run import EarlierRun
from cpt_jax.origin.frozen_base import load_base, put_base, with_new_delimiters
from cpt_jax.origin.pretrained import Pretrained
from cpt_jax.runs.checkpoint import Checkpoints
from cpt_jax.runtime.mesh import shardings
from cpt_jax.training.objective import Params
from cpt_jax.training.setup import Run
from cpt_jax.training.step import TrainState

T = TypeVar('T')


def starting_state(run: Run, saved: Checkpoints) -> tuple[int, TrainState]:
    """Returns how many steps are done, and the state after them: the first that applies of
    1. the run's own latest checkpoint,
    2. the parameters of its origin, an earlier run or a pretrained model,
    3. random parameters.
    """
    abstract = run.abstract_state()
    if run.base is not None:
        return _state_beside_base(run, abstract, saved)
    if restored := saved.restore(abstract):
        return restored
    if isinstance(run.origin, Pretrained):
        fresh = run.tokenizer.added
        encoder = run.origin.load_encoder(run.encoder_config, run.mesh, jnp.float32, fresh)
        return 0, _fresh_state_around(encoder, run, abstract, _put_encoder)
    if isinstance(run.origin, EarlierRun):
        return 0, _state_from_run(run.origin, run, abstract)
    return 0, jax.jit(run.init, out_shardings=shardings(abstract))()


def _state_from_run(origin: EarlierRun, run: Run, abstract: TrainState) -> TrainState:
    """All parameters of a run of the same objective; of another, those of the encoder."""
    if origin.provenance.objective == run.objective.name:
        params = origin.load_params(abstract.params)
        return _fresh_state_around(params, run, abstract, _put_params)
    encoder = origin.load_params({'encoder': abstract.params.encoder})['encoder']
    put = _put_encoder_without_delimiters if origin.is_language_model else _put_encoder
    return _fresh_state_around(encoder, run, abstract, put)


def _state_beside_base(
    run: Run, abstract: TrainState, saved: Checkpoints
) -> tuple[int, TrainState]:
    """The state of a LoRA run: its base comes from where it lies each time, beside the latest
    checkpoint's adapters or fresh ones.
    """
    assert run.base is not None and abstract.frozen is not None
    trained = abstract._replace(frozen=None)
    restored = saved.restore(trained)
    base = load_base(run.base, run.encoder_config, run.mesh, run.lora, run.tokenizer.added)
    frozen = abstract.frozen
    frozen.encoder = put_base(frozen.encoder, base)
    if restored:
        step, state = restored
        return step, state._replace(frozen=frozen)
    state = jax.jit(lambda: run.init()._replace(frozen=None), out_shardings=shardings(trained))()
    _load_own_parameters(state, run, abstract)
    return 0, state._replace(frozen=frozen)


def _load_own_parameters(state: TrainState, run: Run, abstract: TrainState) -> None:
    """Takes what is trained beside the encoder from an earlier run of the same objective."""
    origin = run.origin
    if not isinstance(origin, EarlierRun) or origin.provenance.objective != run.objective.name:
        return
    wanted = run.objective.own_parameters(abstract.params)
    for name, value in origin.load_params(wanted).items():
        setattr(state.params, name, value)


def _fresh_state_around(
    loaded: T, run: Run, abstract: TrainState, put: Callable[[TrainState, T], TrainState]
) -> TrainState:
    """Returns a fresh state with `loaded` put into it. The memory of `loaded` is taken over, so no
    fresh parameters are made beside it.
    """
    make = jax.jit(
        lambda loaded: put(run.init(), loaded), out_shardings=shardings(abstract), donate_argnums=0
    )
    return make(loaded)


def _put_params(state: TrainState, params: Params) -> TrainState:
    return state._replace(params=params)


def _put_encoder(state: TrainState, encoder: Encoder) -> TrainState:
    state.params.encoder = encoder
    return state


def _put_encoder_without_delimiters(state: TrainState, encoder: Encoder) -> TrainState:
    """Puts the encoder of a language model, to which the delimiters are new."""
    encoder.token_embedding = with_new_delimiters(
        encoder.token_embedding, encoder.config.vocab_size
    )
    return _put_encoder(state, encoder)
