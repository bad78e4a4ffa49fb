"""The sizes of a run that its data determine: the maximum lengths of texts and the number of steps.

The run stores the sizes, so a resumed run has the same ones.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from cpt_jax.data.mixture import count_batches_per_epoch, count_source_epochs
from cpt_jax.data.pairs import Source
from cpt_jax.data.token_reader import PairTokenReader, sample_lengths
from cpt_jax.origin.earlier_run import EarlierRun
from cpt_jax.origin.pretrained import PlannedModel, Pretrained
from cpt_jax.origin.resolve import Origin
from cpt_jax.runtime.errors import UserError
from cpt_jax.text.prompt_tokenizer import TextTokenizer
from cpt_jax.text.tokenizer import SIDES, Side

# Fraction of the texts that a length from the data does not truncate.
LENGTH_QUANTILE = 0.99
SAMPLED_PAIRS = 4096
# Lengths are rounded up to a multiple of 8, the smaller side of a TPU's float32 tile.
_LENGTH_MULTIPLE = 8


def assume_longest(config: Mapping[str, Any], origin: Origin) -> dict[str, Any]:
    """Returns the config with the longest texts that the model can read in place of lengths that
    the data will determine.

    Args:
      config: the sections of configs/base.py, with the architecture to train.
      origin: the model that a new run starts from.
    """
    limits = _find_limits(config, origin)
    found = {side: config['data'][f'max_tokens_{side}'] or limits[side] for side in SIDES}
    return _with_lengths(config, found)


def read_lengths(
    config: Mapping[str, Any], origin: Origin, sources: Sequence[Source], tokenizer: TextTokenizer
) -> dict[str, Any]:
    """Returns the config with a quantile of the data's lengths in place of `max_tokens_x=0` and
    `max_tokens_y=0`, and with the smallest rows that fit in place of `row_length=0`.

    Args:
      config: the sections of configs/base.py, with the architecture to train.
      origin: the model that a new run starts from, which bounds the lengths.
      sources: sources of the run's pairs.
      tokenizer: the run's tokenizer.
    """
    if config['objective'] != 'contrastive':  # a language model reads whole rows
        return assume_longest(config, origin)
    data = config['data']
    limits = _find_limits(config, origin)
    found = {side: data[f'max_tokens_{side}'] for side in SIDES}
    if not all(found.values()):
        reader = PairTokenReader(sources, tokenizer, limits['x'], limits['y'], data['negatives'])
        longest_Sx2 = np.array([_measure_longest(reader, i) for i in range(len(sources))])
        for side, longest in zip(SIDES, longest_Sx2.max(0).tolist(), strict=True):
            found[side] = found[side] or min(_round_up(longest), limits[side])
    return _with_lengths(config, found)


def _measure_longest(reader: PairTokenReader, source: int) -> list[int]:
    """Returns the quantile of the lengths of a source's x, and of its y and hard negatives."""
    lengths_PxT = sample_lengths(reader, source, SAMPLED_PAIRS)
    others_N = lengths_PxT[:, 1:].ravel()
    others_N = others_N[others_N > 0]  # a missing negative has no tokens
    sides = lengths_PxT[:, 0], others_N
    return [math.ceil(np.quantile(lengths, LENGTH_QUANTILE)) for lengths in sides]


def read_steps(config: Mapping[str, Any], sources: Mapping[str, Source]) -> dict[str, Any]:
    """Returns the config with `train.steps` from `train.epochs` or the sources' own epochs, and
    `evaluation.every_steps` from `evaluation.times`, where these are not 0.
    """
    train, evaluation = dict(config['train']), dict(config['evaluation'])
    own_batches = count_source_epochs(config['data']['sources'], sources, train['batch_pairs'])
    if own_batches:
        if train.get('epochs'):
            raise UserError(
                f'train.epochs={train["epochs"]:g}: data.sources.{next(iter(sources))}.epochs and '
                f'those of the other sources replace it: set it to 0'
            )
        train['steps'] = max(math.ceil(sum(own_batches.values())), 1)
    if train.get('epochs'):
        batches = count_batches_per_epoch(sources, train['batch_pairs'])
        train['steps'] = max(math.ceil(train['epochs'] * batches), 1)
    if evaluation.get('times'):
        evaluation['every_steps'] = math.ceil(train['steps'] / evaluation['times'])
    return {**config, 'train': train, 'evaluation': evaluation}


# Keys that have no effect while another key, which replaces them, is not 0.
_REPLACED_KEYS = {
    'train.steps': 'train.epochs',
    'evaluation.every_steps': 'evaluation.times',
    'optimizer.warmup_steps': 'optimizer.warmup_share',
}


def check_given_sizes(config: Mapping[str, Any], given: Collection[str]) -> None:
    """Raises UserError if a flag sets a key that another key replaces."""
    for key, replacement in _REPLACED_KEYS.items():
        section, _, name = replacement.partition('.')
        value = (config.get(section) or {}).get(name)
        if key in given and value:
            raise UserError(
                f'--config.{key} has no effect, because {replacement}={value:g} replaces it: add '
                f'--config.{replacement}=0'
            )
    # A config that lacks sections is checked later.
    source = _find_source_with_epochs(config) if 'data' in config else None
    if source and 'train.steps' in given:
        raise UserError(
            f'--config.train.steps has no effect, because data.sources.{source}.epochs replaces '
            f'it: remove one of them'
        )


def _find_source_with_epochs(config: Mapping[str, Any]) -> str | None:
    """Returns the name of a source that has a number of epochs of its own."""
    sources = config['data']['sources']
    return next((name for name in sources if sources[name].get('epochs')), None)


def keep_sizes(config: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config with the sizes of a run in place of those that the data determine.

    Args:
      config: the sections of configs/base.py.
      stored: the config that the run stored.
    """
    kept = dict(config)
    for section, key, is_open in [
        ('data', 'max_tokens_x', not config['data']['max_tokens_x']),
        ('data', 'max_tokens_y', not config['data']['max_tokens_y']),
        ('data', 'row_length', not config['data']['row_length']),
        ('train', 'steps', config['train'].get('epochs') or _find_source_with_epochs(config)),
        ('evaluation', 'every_steps', config['evaluation'].get('times')),
    ]:
        if is_open:
            kept[section] = {**kept[section], key: stored[section][key]}
    return kept


def _find_limits(config: Mapping[str, Any], origin: Origin) -> dict[Side, int]:
    """Returns the maximum number of tokens that the model can read of a text, by side."""
    longest = config['model']['max_length']
    if config['data']['row_length']:
        longest = min(longest, config['data']['row_length'])
    if isinstance(origin, Pretrained | PlannedModel):
        return {side: min(origin.limits[side], longest) for side in SIDES}
    if isinstance(origin, EarlierRun) and not origin.is_language_model:
        data = origin.provenance.config['data']
        return {side: min(data[f'max_tokens_{side}'], longest) for side in SIDES}
    return dict.fromkeys(SIDES, longest)


def _with_lengths(config: Mapping[str, Any], lengths: Mapping[Side, int]) -> dict[str, Any]:
    """Returns the config with these maximum lengths, and with rows that hold them if `row_length`
    is 0.
    """
    data = config['data']
    row_length = data['row_length'] or _round_up(max(lengths.values()))
    if not data['row_length'] and config['objective'] != 'contrastive':
        row_length = config['model']['max_length']  # a row is a text of a language model
    lengths_by_key = {f'max_tokens_{side}': length for side, length in lengths.items()}
    return {**config, 'data': {**data, **lengths_by_key, 'row_length': row_length}}


def _round_up(length: int) -> int:
    return -(-length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
