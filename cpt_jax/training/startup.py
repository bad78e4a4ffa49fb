"""The table that a run prints before its first step."""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cpt_jax.data.batch import Layout
from cpt_jax.data.equality import NORMALIZED, compute_masked_share, count_repeated_texts
from cpt_jax.data.pairs import spread_indices
from cpt_jax.data.token_reader import TokenReader
from cpt_jax.origin.pretrained import Pretrained
from cpt_jax.text.pretrained_tokenizer import PretrainedTokenizer
from cpt_jax.text.prompt_tokenizer import PromptTokenizer
from cpt_jax.training.setup import Run
from cpt_jax.training.sizes import LENGTH_QUANTILE, SAMPLED_PAIRS
from cpt_jax.training.step import TrainState

# Number of parameters above which a start from random weights is worth a line.
MANY_PARAMETERS = 100_000_000
# Maximum number of pairs of a source that are compared with each other before training.
COMPARED_PAIRS = 1024
# Fraction of masked negatives above which the table warns.
MUCH_MASKED = 0.5
_MAX_RATES = 1_000_000  # number of steps whose learning rate is computed for the table


@dataclasses.dataclass(frozen=True)
class ChosenKeys:
    """What the user chose, to show where the values of a run come from.

    Attributes:
      config: the config before anything in it was resolved.
      given: keys that flags have set.
    """

    config: Mapping[str, Any]
    given: Collection[str]

    def find_source(self, key: str, otherwise: str) -> str:
        """Returns where the value of a key comes from: 'flag', 'config', or `otherwise` if the
        user left it open.
        """
        value: Any = self.config
        for name in key.split('.'):
            value = (value or {}).get(name)
        if value in (None, 0, 'auto'):
            return otherwise
        return 'flag' if key in self.given else 'config'


def format_startup_table(
    run: Run, state: TrainState, first_step: int, workdir: Path, chosen: ChosenKeys
) -> str:
    """Returns a description of the run, one line per property.

    Args:
      run: the run.
      state: its state before the first step.
      first_step: number of steps already done.
      workdir: the run's directory, as the user gave it.
      chosen: what the user chose.
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
        'start': '' if first_step else describe_random_start(run, parameters),
        'origin': _describe_origin(run),
        'form': _describe_form(run, chosen),
        'lengths': _describe_lengths(run, chosen),
        'learning': _describe_schedule(run),
        'batch': run.objective.describe_batch(run.train.batch_pairs, run.data),
        'rows': _describe_layout(run.layout),
        **describe_equal_texts(run),
        'held out': _describe_heldout(run),
        **{f'data {name}': describe_source(run, name) for name in run.sources},
    }
    width = max(map(len, rows))
    return '\n'.join(f'{name:>{width}}  {text}' for name, text in rows.items() if text)


def describe_source(run: Run, name: str) -> str:
    """Returns the summary of a source, and how many times the run reads it."""
    source = run.sources[name]
    what = 'read' if source.documents is None else 'one pair of each document read'
    return f'{source.summary()}; {what} {run.epochs[name]:.3g} times in {run.train.steps:,} steps'


def describe_random_start(run: Run, parameters: int) -> str:
    """Returns what it means to train a large embedding model from random weights; '' for others.

    Args:
      run: a run at its first step.
      parameters: number of trained parameters.
    """
    is_random = not run.provenance.config['init_from']
    if run.objective.name != 'contrastive' or not is_random or parameters <= MANY_PARAMETERS:
        return ''
    return (
        f'random weights; the paper found pairs alone not enough to learn useful vectors, and '
        f'starts from a GPT: set --config.init_from to a language model of width '
        f'{run.encoder_config.width:,} (docs/models.md names some)'
    )


def _describe_origin(run: Run) -> str:
    """Returns what differs between a run and the pretrained model that it starts from."""
    if not isinstance(run.origin, Pretrained):
        return ''
    notes = run.origin.find_warnings()
    if run.origin.similarity != 'cosine':
        notes.append('compares vectors by dot product; this run trains cosines of unit vectors')
    return '; '.join(notes)


def _describe_layout(layout: Layout) -> str:
    text = (
        f'{layout.parts} parts x {layout.chunks} chunks x {layout.rows} rows of '
        f'{layout.row_length}: {layout.tokens:,} tokens per batch, padding included'
    )
    if layout.smaller_row_counts:
        smaller = ', '.join(map(str, layout.smaller_row_counts))
        text += f'; {smaller} rows for batches that fit into fewer'
    return text


def describe_equal_texts(run: Run) -> dict[str, str]:
    """Returns how many texts of a sample of each source the model cannot tell from another, and a
    warning if the masks of equal texts leave few negatives.
    """
    if run.objective.name != 'contrastive' or run.data.equality_rule != NORMALIZED:
        return {}
    samples = {name: _sample_ids(run.reader, i) for i, name in enumerate(run.sources)}
    counts = [f'{name}: {_count_equal_texts(ids)}' for name, ids in samples.items()]
    shares = {name: compute_masked_share(ids) for name, ids in samples.items()}
    warnings = [
        f'data.sources.{name}: {share:.0%} of the negatives in a batch are masked, because pairs '
        f'have equal texts. If only the first tokens are equal, raise data.max_tokens_x or '
        f'data.max_tokens_y, or remove the common beginning'
        for name, share in shares.items()
        if share > MUCH_MASKED
    ]
    return {
        'equal texts': f'{"; ".join(counts)} (sampled texts that equal another once truncated)',
        'warning': '; '.join(warnings),
    }


def _count_equal_texts(ids_PxTxZ: np.ndarray) -> str:
    """Returns how many x, y and hard negatives have the same tokens as another one."""
    columns = {'x': ids_PxTxZ[:, 0], 'y': ids_PxTxZ[:, 1], 'negatives': ids_PxTxZ[:, 2:]}
    present = {name: ids[ids[..., 0] > 0] for name, ids in columns.items()}
    return ', '.join(
        f'{count_repeated_texts(ids_NxZ):,} of {len(ids_NxZ):,} {name}'
        for name, ids_NxZ in present.items()
        if len(ids_NxZ)
    )


def _sample_ids(reader: TokenReader, source: int) -> np.ndarray:
    """Returns int32[P, T, Z]: the ids by which the texts of some pairs are compared.

    The pairs are some of those that `plan_layout` has sampled, which the reader has in its cache.
    """
    indices = spread_indices(len(reader.sources[source]), SAMPLED_PAIRS)
    step = -(-len(indices) // COMPARED_PAIRS)
    return reader(source, indices[::step])[1]


def _describe_template(run: Run) -> str:
    if not isinstance(run.tokenizer, PromptTokenizer):
        return ''
    prompt = run.tokenizer.prompt
    if not prompt.text_tokens:
        return prompt.template
    return f'{prompt.template}, texts truncated to {prompt.text_tokens} ids'


def _describe_form(run: Run, chosen: ChosenKeys) -> str:
    """Returns what is put around texts and how they are pooled, and where that comes from."""
    model = _name_origin(chosen)
    where = chosen.find_source('model.pooling', model)
    text = f'pooling {run.encoder_config.pooling} ({where})'
    if not isinstance(run.tokenizer, PretrainedTokenizer):
        return text
    where = chosen.find_source('tokenizer.delimiters', model)
    text += f", the model's special tokens ({where})"
    for side, prompt in run.tokenizer.prompts.items():
        text += (
            f', prompt of {side} {prompt!r} ({chosen.find_source(f"data.prompts.{side}", model)})'
        )
    return text


def _describe_lengths(run: Run, chosen: ChosenKeys) -> str:
    """Returns the maximum lengths of a run's texts, and where they come from."""
    if run.objective.name != 'contrastive':
        return ''
    parts = []
    for side, length in (('x', run.data.max_tokens_x), ('y', run.data.max_tokens_y)):
        open_length = f'{LENGTH_QUANTILE:.0%} of the data, at most what the model reads'
        where = chosen.find_source(f'data.max_tokens_{side}', open_length)
        parts.append(f'{side} up to {length:,} tokens ({where})')
    return ', '.join(parts)


def _describe_schedule(run: Run) -> str:
    """Returns the number of steps, and the learning rate at its peak and at the end."""
    steps = run.train.steps
    epochs = f' ({run.train.epochs:g} epochs)' if run.train.epochs else ''
    shown = min(steps + 1, _MAX_RATES)
    steps_S = np.linspace(0, steps, shown).astype(np.int64)
    rates_S = np.asarray(run.schedule(steps_S))
    return (
        f'{steps:,} steps{epochs}, learning rate {rates_S.max():.2g} after '
        f'{steps_S[rates_S.argmax()]:,} steps, {rates_S[-1]:.2g} at the end'
    )


def _name_origin(chosen: ChosenKeys) -> str:
    """Returns the name of what decides about a key that the user left open."""
    return Path(chosen.config['init_from']).name or 'default'


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
