"""The state from which a run starts or resumes."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from cpt_jax.model.encoder import Encoder
from cpt_jax.origin.earlier_run import EarlierRun
from cpt_jax.origin.frozen_base import add_new_delimiters, fill_frozen_from_base, load_base
from cpt_jax.origin.pretrained import Pretrained
from cpt_jax.runs.checkpoint import Checkpoints
from cpt_jax.runtime.mesh import shardings
from cpt_jax.training.setup import Run
from cpt_jax.training.step import TrainState

T = TypeVar('T')


def make_starting_state(run: Run, checkpoints: Checkpoints) -> tuple[int, TrainState]:
    """Returns the number of steps done and the state after them.

    The state comes from the first of these that exists:
    1. the run's own latest checkpoint,
    2. the parameters of its origin, an earlier run or a pretrained model,
    3. random initialization.
    """
    abstract = run.make_abstract_state()
    if run.base is not None:
        return _make_lora_state(run, abstract, checkpoints)
    if restored := checkpoints.restore(abstract):
        return restored
    if isinstance(run.origin, Pretrained):
        new_ids = run.tokenizer.added_ids
        encoder = run.origin.load_encoder(
            run.encoder_config, run.mesh, jnp.dtype('float32'), new_ids
        )
        state = _make_fresh_state(encoder, run, abstract, _replace_encoder)
        return 0, _load_dense(state, run)
    if isinstance(run.origin, EarlierRun):
        return 0, _load_from_run(run.origin, run, abstract)
    return 0, jax.jit(run.init, out_shardings=shardings(abstract))()


def _load_from_run(origin: EarlierRun, run: Run, abstract: TrainState) -> TrainState:
    """Returns a fresh state with the parameters of an earlier run: the encoder's, and if it has the
    same objective those of `get_own_parameters`.
    """
    if origin.provenance.objective == run.objective.name:
        own = run.objective.get_own_parameters(abstract.params)
        params = origin.load_params({'encoder': abstract.params.encoder, **own})
        return _make_fresh_state(params, run, abstract, _replace_params)
    encoder = origin.load_params({'encoder': abstract.params.encoder})['encoder']
    put = _replace_encoder_without_delimiters if origin.is_language_model else _replace_encoder
    return _make_fresh_state(encoder, run, abstract, put)


def _make_lora_state(
    run: Run, abstract: TrainState, checkpoints: Checkpoints
) -> tuple[int, TrainState]:
    """Returns the number of steps done and the state of a LoRA run.

    Checkpoints contain only the adapters, so the frozen base is loaded from its origin at every
    start.
    """
    assert run.base is not None and abstract.frozen is not None
    trained = abstract._replace(frozen=None)
    restored = checkpoints.restore(trained)
    base = load_base(run.base, run.encoder_config, run.mesh, run.lora, run.tokenizer.added_ids)
    frozen = abstract.frozen
    frozen.encoder = fill_frozen_from_base(frozen.encoder, base)
    if restored:
        step, state = restored
        return step, state._replace(frozen=frozen)
    state = jax.jit(lambda: run.init()._replace(frozen=None), out_shardings=shardings(trained))()
    _load_own_parameters(state, run, abstract)
    if isinstance(run.origin, Pretrained):
        state = _load_dense(state, run)
    return 0, state._replace(frozen=frozen)


def _load_own_parameters(state: TrainState, run: Run, abstract: TrainState) -> None:
    """Loads the trained parameters other than the encoder's from an earlier run of the same
    objective, if the run starts from one.
    """
    origin = run.origin
    if not isinstance(origin, EarlierRun) or origin.provenance.objective != run.objective.name:
        return
    wanted = run.objective.get_own_parameters(abstract.params)
    for name, value in (origin.load_params(wanted) if wanted else {}).items():
        setattr(state.params, name, value)


def _make_fresh_state(
    loaded: T, run: Run, abstract: TrainState, put: Callable[[TrainState, T], TrainState]
) -> TrainState:
    """Returns a fresh state with `loaded` put into it by `put`.

    `loaded` is donated, so it is never in memory together with the random parameters that it
    replaces.
    """
    make = jax.jit(
        lambda loaded: put(run.init(), loaded), out_shardings=shardings(abstract), donate_argnums=0
    )
    return make(loaded)


def _load_dense(state: TrainState, run: Run) -> TrainState:
    """Replaces the Dense modules of a fresh state by those of the pretrained model."""
    if run.encoder_config.dense:
        assert isinstance(run.origin, Pretrained)
        state.params.dense = nnx.List(run.origin.load_dense(run.mesh))  # type: ignore[attr-defined]
    return state


def _replace_params(state: TrainState, params: Mapping[str, Any]) -> TrainState:
    for name, value in params.items():
        setattr(state.params, name, value)
    return state


def _replace_encoder(state: TrainState, encoder: Encoder) -> TrainState:
    state.params.encoder = encoder
    return state


def _replace_encoder_without_delimiters(state: TrainState, encoder: Encoder) -> TrainState:
    """Puts the encoder of a language model into a state, with new embeddings for the delimiters,
    which the language model did not train.
    """
    encoder.token_embedding = add_new_delimiters(encoder.token_embedding, encoder.config.vocab_size)
    return _replace_encoder(state, encoder)
