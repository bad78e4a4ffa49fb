"""The table that a run prints before its first step."""

from pathlib import Path

import jax

from cpt_jax.data.batch import Layout
from cpt_jax.text.prompt_tokenizer import PromptTokenizer
from cpt_jax.training.setup import Run
from cpt_jax.training.step import TrainState


def format_startup_table(run: Run, state: TrainState, first_step: int, workdir: Path) -> str:
    """Returns a description of the run, one line per property.

    Args:
      run: the run.
      state: its state before the first step.
      first_step: number of steps already done.
      workdir: the run's directory, as the user gave it.
    """
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    embedding_size = state.encoder.token_embedding[...].size
    tokenizer_speed = 'speed not measured'
    if run.reader.seconds:
        tokenizer_speed = f'{run.reader.tokens / run.reader.seconds:,.0f} tokens/s'
    rows = {
        'run': f'{workdir}, step {first_step:,} of {run.train.steps:,}, code {run.provenance.code}',
        'changed': '; '.join(run.changes),
        'devices': f'{run.mesh.size} {run.mesh.devices.flat[0].device_kind}, '
        f'{jax.process_count()} processes, mesh {dict(run.mesh.shape)}',
        'parameters': f'{parameters:,} ({_describe_parameters(run, state, embedding_size)}), '
        f'compute in {run.encoder_config.dtype}',
        'tokenizer': f'{run.tokenizer.vocab_size:,} ids, fingerprint '
        f'{run.tokenizer.fingerprint[:12]}, {tokenizer_speed}',
        'template': _describe_template(run),
        'batch': run.objective.describe_batch(run.train.batch_pairs, run.data),
        'rows': _describe_layout(run.layout),
        'held out': _describe_heldout(run),
        **{f'data {name}': source.summary() for name, source in run.sources.items()},
    }
    width = max(map(len, rows))
    return '\n'.join(f'{name:>{width}}  {text}' for name, text in rows.items() if text)


def _describe_layout(layout: Layout) -> str:
    text = (
        f'{layout.parts} parts x {layout.chunks} chunks x {layout.rows} rows of '
        f'{layout.row_length}: {layout.tokens:,} tokens per batch, padding included'
    )
    if layout.smaller_row_counts:
        smaller = ', '.join(map(str, layout.smaller_row_counts))
        text += f'; {smaller} rows for batches that fit into fewer'
    return text


def _describe_template(run: Run) -> str:
    if not isinstance(run.tokenizer, PromptTokenizer):
        return ''
    prompt = run.tokenizer.prompt
    if not prompt.text_tokens:
        return prompt.template
    return f'{prompt.template}, texts truncated to {prompt.text_tokens} ids'


def _describe_parameters(run: Run, state: TrainState, embedding_size: int) -> str:
    if not run.lora.rank:
        return f'{embedding_size:,} of them token embeddings'
    assert run.provenance.base is not None
    frozen_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state.frozen))
    return (
        f'adapters of rank {run.lora.rank}; base {run.provenance.base.path}, '
        f'{frozen_bytes / 1e9:,.3g} GB, frozen in {run.lora.base}'
    )


def _describe_heldout(run: Run) -> str:
    if not run.evaluation.is_on:
        return 'not evaluated (evaluation.every_steps or evaluation.pairs is 0)'
    if not run.heldout_pairs:
        return 'none: no source has a holdout'
    return (
        f'{run.objective.describe_heldout(len(run.heldout_pairs))}, evaluated every '
        f'{run.evaluation.every_steps:,} steps'
    )
