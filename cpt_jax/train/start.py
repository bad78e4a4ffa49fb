"""Where a run starts from, and what it says of itself before the first step."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp

from cpt_jax import checkpoint
from cpt_jax.base_model import load_base, put_base, with_new_delimiters
from cpt_jax.errors import UserError
from cpt_jax.mesh import shardings
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.families.load import load_encoder
from cpt_jax.pretrained import is_pretrained, open_pretrained
from cpt_jax.prompt_tokenizer import PromptTokenizer
from cpt_jax.train.setup import Run
from cpt_jax.train.step import TrainState

T = TypeVar('T')


def starting_state(run: Run, saved: checkpoint.Checkpoints) -> tuple[int, TrainState]:
    """The first that applies of: 1. the run's own latest checkpoint; 2. the parameters of the run or the pretrained model `init_from`;
    3. scratch.
    """
    abstract = run.abstract_state()
    if run.lora.rank:
        return _adapted_state(run, abstract, saved)
    if restored := saved.restore(abstract):
        return restored
    if is_pretrained(run.init_from):
        found = open_pretrained(run.init_from)
        encoder = load_encoder(found.family, found.files, run.shape, run.mesh, jnp.float32, run.tokenizer.added)
        return 0, _started(run, abstract, encoder, _with_encoder)
    if run.init_from:
        return _from_run(run, abstract)
    return 0, jax.jit(run.init, out_shardings=shardings(abstract))()


def _from_run(run: Run, abstract: TrainState) -> tuple[int, TrainState]:
    """All parameters of a run of the same objective; of another, those of the encoder."""
    before = _objective(run.init_from)
    if before == run.objective.name:
        params = _loaded(run.init_from, abstract.params)
        return 0, _started(run, abstract, params, lambda state, params: state._replace(params=params))
    encoder = _loaded(run.init_from, {'encoder': abstract.params.encoder})['encoder']
    return 0, _started(run, abstract, encoder, _with_delimiters if before == 'lm' else _with_encoder)


def _objective(init_from: str) -> str:
    return checkpoint.objective_of(checkpoint.read_about(*checkpoint.find(init_from, 'init_from')))


def _loaded(init_from: str, params: T) -> T:
    """Parameters of the run that this one starts from."""
    try:
        return checkpoint.load_params(*checkpoint.find(init_from, 'init_from'), params)
    except KeyError as error:
        raise UserError(f'init_from={init_from}: its model is not of the shape of this config: {error.args[0]}') from error


def _adapted_state(run: Run, abstract: TrainState, saved: checkpoint.Checkpoints) -> tuple[int, TrainState]:
    """The same with LoRA: the base comes from `init_from` each time, beside the latest checkpoint's adapters or fresh ones."""
    restored = saved.restore(abstract._replace(frozen=None))
    frozen = abstract.frozen
    frozen.encoder = put_base(frozen.encoder, load_base(run.about['base']['path'], run.shape, run.mesh, run.lora, run.tokenizer.added))
    if restored:
        step, state = restored
        return step, state._replace(frozen=frozen)
    trained = abstract._replace(frozen=None)
    state = jax.jit(lambda: run.init()._replace(frozen=None), out_shardings=shardings(trained))()
    if not is_pretrained(run.init_from) and _objective(run.init_from) == 'contrastive' == run.objective.name:
        state.params.log_scale = _loaded(run.init_from, {'log_scale': abstract.params.log_scale})['log_scale']
    return 0, state._replace(frozen=frozen)


def _started(run: Run, abstract: TrainState, loaded: T, put: Callable[[TrainState, T], TrainState]) -> TrainState:
    """A fresh state around what was loaded, which it takes over: no fresh parameters are made beside it."""
    make = jax.jit(lambda loaded: put(run.init(), loaded), out_shardings=shardings(abstract), donate_argnums=0)
    return make(loaded)


def _with_encoder(state: TrainState, encoder: Encoder) -> TrainState:
    state.params.encoder = encoder
    return state


def _with_delimiters(state: TrainState, encoder: Encoder) -> TrainState:
    """With the encoder of a language model, to which the delimiters are new."""
    state = _with_encoder(state, encoder)
    encoder.token_embedding = with_new_delimiters(encoder.token_embedding, encoder.shape.vocab_size)
    return state


def startup_table(run: Run, state: TrainState, first: int, workdir: Path) -> str:
    """What is about to run, a line each."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    table = state.encoder.token_embedding[...].size
    layout = run.layout
    tokenized = f'{run.texts.tokens / run.texts.seconds:,.0f} tokens/s' if run.texts.seconds else 'not measured'
    rows = {
        'run': f'{workdir}, step {first:,} of {run.train.steps:,}, code {run.about["code"]}',
        'changed': '; '.join(run.changes),
        'devices': f'{run.mesh.size} {run.mesh.devices.flat[0].device_kind}, {jax.process_count()} processes, mesh {dict(run.mesh.shape)}',
        'parameters': f'{parameters:,} ({_what_they_are(run, state, table)}), compute in {run.shape.dtype}',
        'tokenizer': f'{run.tokenizer.vocab_size:,} ids, fingerprint {run.tokenizer.fingerprint[:12]}, {tokenized}',
        'template': _template_line(run),
        'batch': run.objective.batch_line(run.train.batch_pairs, run.data),
        'rows': (
            f'{layout.parts} parts x {layout.chunks} chunks x {layout.rows} rows of {layout.row_length}:'
            f' {layout.tokens:,} tokens a batch, padding included'
            + (f'; {", ".join(map(str, layout.fewer))} rows where they are enough' if layout.fewer else '')
        ),
        'held out': _heldout_line(run),
        **{f'data {name}': source.summary() for name, source in run.sources.items()},
    }
    width = max(map(len, rows))
    return '\n'.join(f'{name:>{width}}  {text}' for name, text in rows.items() if text)


def _template_line(run: Run) -> str:
    if not isinstance(run.tokenizer, PromptTokenizer):
        return ''
    prompt = run.tokenizer.prompt
    return prompt.template + (f', texts cut at {prompt.text_tokens} ids' if prompt.text_tokens else '')


def _what_they_are(run: Run, state: TrainState, table: int) -> str:
    if not run.lora.rank:
        return f'{table:,} of them token embeddings'
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state.frozen))
    return f'adapters of rank {run.lora.rank}, beside {held / 1e9:,.3g} GB of {run.about["base"]["path"]}, frozen in {run.lora.base}'


def _heldout_line(run: Run) -> str:
    if not run.evaluation.every_steps or not run.evaluation.pairs:
        return 'not looked at (evaluation.every_steps, evaluation.pairs)'
    if not run.heldout:
        return 'nothing: no source has a holdout'
    return f'{run.objective.heldout_line(len(run.heldout))}, looked at every {run.evaluation.every_steps:,} steps'
