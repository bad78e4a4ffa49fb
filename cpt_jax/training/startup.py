"""What a run prints before its first step."""

from pathlib import Path

import jax

from cpt_jax.text.prompt_tokenizer import PromptTokenizer
from cpt_jax.training.setup import Run
from cpt_jax.training.step import TrainState


def startup_table(run: Run, state: TrainState, first: int, workdir: Path) -> str:
    """What is about to run, a line each."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    table = state.encoder.token_embedding[...].size
    layout = run.layout
    tokenized = (
        f'{run.reader.tokens / run.reader.seconds:,.0f} tokens/s'
        if run.reader.seconds
        else 'not measured'
    )
    rows = {
        'run': f'{workdir}, step {first:,} of {run.train.steps:,}, code {run.provenance.code}',
        'changed': '; '.join(run.changes),
        'devices': f'{run.mesh.size} {run.mesh.devices.flat[0].device_kind}, '
        f'{jax.process_count()} processes, mesh {dict(run.mesh.shape)}',
        'parameters': f'{parameters:,} ({_describe_parameters(run, state, table)}), compute in '
        f'{run.encoder_config.dtype}',
        'tokenizer': f'{run.tokenizer.vocab_size:,} ids, fingerprint '
        f'{run.tokenizer.fingerprint[:12]}, {tokenized}',
        'template': _template_line(run),
        'batch': run.objective.batch_line(run.train.batch_pairs, run.data),
        'rows': (
            f'{layout.parts} parts x {layout.chunks} chunks x {layout.rows} rows of '
            f'{layout.row_length}: {layout.tokens:,} tokens a batch, padding included'
            + (
                f'; {", ".join(map(str, layout.smaller_row_counts))} rows where they are enough'
                if layout.smaller_row_counts
                else ''
            )
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
    return prompt.template + (
        f', texts cut at {prompt.text_tokens} ids' if prompt.text_tokens else ''
    )


def _describe_parameters(run: Run, state: TrainState, table: int) -> str:
    if not run.lora.rank:
        return f'{table:,} of them token embeddings'
    assert run.provenance.base is not None
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state.frozen))
    return (
        f'adapters of rank {run.lora.rank}, beside {held / 1e9:,.3g} GB of '
        f'{run.provenance.base.path}, frozen in {run.lora.base}'
    )


def _heldout_line(run: Run) -> str:
    if not run.evaluation.is_on:
        return 'not looked at (evaluation.every_steps, evaluation.pairs)'
    if not run.heldout:
        return 'nothing: no source has a holdout'
    return (
        f'{run.objective.heldout_line(len(run.heldout))}, looked at every '
        f'{run.evaluation.every_steps:,} steps'
    )
