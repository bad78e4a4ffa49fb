"""Which pairs are in batch `step`: a pure function of (seed, step), so that a run has no state of
its data to save.

A batch comes from one source, the same on every host, as negatives from another source would be
told apart by their style.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import NamedTuple

import grain
import numpy as np

from cpt_jax.data.pairs import Source, text_digest
from cpt_jax.data.sources.csv_pairs import CsvSource
from cpt_jax.data.sources.jsonl import JsonlSource
from cpt_jax.data.sources.python_source import PythonSource
from cpt_jax.data.sources.text import TextSource, TokenCounter
from cpt_jax.data.sources.tfds_pairs import TfdsSource
from cpt_jax.runs.config import check_section
from cpt_jax.runtime.errors import UserError

KINDS: dict[str, Callable[..., Source]] = {
    'python_source': PythonSource,
    'jsonl': JsonlSource,
    'csv': CsvSource,
    'tfds': TfdsSource,
    'text': TextSource,
}

# Arguments of these classes that a run gives, and a config does not.
_GIVEN = ('split', 'tokenizer')


def source_arguments(kind: str) -> dict[str, inspect.Parameter]:
    """Returns the arguments of a kind's class that a config may set, by name."""
    parameters = inspect.signature(KINDS[kind]).parameters
    return {name: parameter for name, parameter in parameters.items() if name not in _GIVEN}


def source_functions(sections: Mapping[str, Mapping]) -> dict[str, Callable[..., Source]]:
    """Returns the class of each source in a config's `data.sources`, by 'data.sources.NAME': what
    `check_resume` takes the defaults from.

    Sources of an unknown kind are left out; `make_sources` reports them.
    """
    return {
        f'data.sources.{name}': KINDS[section['kind']]
        for name, section in sections.items()
        if section.get('kind') in KINDS
    }


class BatchIndex(NamedTuple):
    """What a batch consists of.

    Attributes:
      source: number of the source, in the order of the mapping that `batches` was given.
      pairs: int64[batch_pairs], numbers of its pairs, all different.
    """

    source: int
    pairs: np.ndarray


def make_sources(
    sections: Mapping[str, Mapping],
    split: str,
    tokenizer: TokenCounter,
    seen_as: Callable[[Source], Source] = lambda source: source,
) -> tuple[dict[str, Source], dict[str, float]]:
    """The sources of a config's `data.sources`, and their weights, by name and in the order of the
    names.

    A section holds `kind` (one of KINDS), `weight` and the keyword arguments of that kind's class.
    Split 'heldout' leaves out the sources that hold out nothing. Each is wrapped in `seen_as`.
    Raises UserError, which names the key, for what cannot be used.
    """
    sources = {
        name: seen_as(_source(name, dict(sections[name]), split, tokenizer))
        for name in sorted(sections)
    }
    kept = {name: source for name, source in sources.items() if len(source) or split != 'heldout'}
    return kept, {name: _weight(name, sections[name]['weight']) for name in kept}


def _source(name: str, section: dict, split: str, tokenizer: TokenCounter) -> Source:
    where = f'data.sources.{name}'
    kind = section.pop('kind', None)
    if kind not in KINDS:
        raise UserError(f'{where}.kind is {kind!r} and must be one of {", ".join(KINDS)}')
    if section.pop('weight', None) is None:
        raise UserError(f'config key {where}.weight is missing')
    given = {'split': split} | (
        {'tokenizer': tokenizer} if 'tokenizer' in inspect.signature(KINDS[kind]).parameters else {}
    )
    check_section(KINDS[kind], where, section, given)
    try:
        return KINDS[kind](**section, **given)
    except UserError as error:  # names the argument
        raise UserError(
            f'{where}: {error} (arguments of this source are set with --config.{where}.NAME=VALUE)'
        ) from None


def _weight(name: str, weight: float) -> float:
    if not weight > 0:
        raise UserError(
            f'data.sources.{name}.weight is {weight} and must be above 0: take the source out '
            f'instead'
        )
    return float(weight)


def batches(
    sources: Mapping[str, Source], weights: Mapping[str, float], seed: int, batch_pairs: int
) -> grain.MapDataset:
    """An endless data set whose element [step] is a BatchIndex.

    Each source is shuffled anew in every epoch (the pairs that do not fill a last batch differ from
    epoch to epoch), and no batch crosses an epoch's end, so no pair meets itself. In an epoch of a
    source with documents each document gives one pair, the next one in the next epoch, so a batch
    holds at most one pair of a document. Sources take turns in proportion to their weights (to 1 %,
    and evenly: not by chance) and never run out.

    Args:
      sources: the sources by name; a name also seeds its source's order, so another source does not
        change it.
      weights: by name, above 0, in any scale: the share of the batches.
      seed: another seed gives other batches.
      batch_pairs: pairs in a batch.

    Raises:
      UserError: a source has fewer pairs, or documents, than a batch.
    """
    parts = [
        _source_batches(i, name, source, seed, batch_pairs)
        for i, (name, source) in enumerate(sources.items())
    ]
    shares = np.array([weights[name] for name in sources])
    # grain cuts the weights to whole numbers with 100 for the smallest; these are such numbers
    # already, and rounded.
    return grain.MapDataset.mix(parts, np.rint(100 * shares / shares.min()).tolist())


def _source_batches(
    number: int, name: str, source: Source, seed: int, batch_pairs: int
) -> grain.MapDataset:
    """The batches of one source, endless; one batch after the other is consecutive in its own
    order.
    """
    units = len(source) if source.documents is None else len(source.documents) - 1
    if units < batch_pairs:
        separator = f'data.sources.{name}.separator'
        documents = f'documents (a batch holds one pair of each; {separator} makes more of them)'
        what = 'pairs' if source.documents is None else documents
        raise UserError(
            f'data.sources.{name} has {units} {what}, fewer than train.batch_pairs={batch_pairs}: '
            f'lower that or add data'
        )
    # grain's shuffle uses seed + epoch, so that neighbouring seeds would give the same orders an
    # epoch apart.
    order_seed = int(text_digest(str(seed), name)[:8], 16)
    per_epoch = units // batch_pairs

    def batch(index: int, units_B: np.ndarray) -> BatchIndex:
        pairs = (
            units_B
            if source.documents is None
            else _pick(source.documents, units_B, index // per_epoch, order_seed)
        )
        return BatchIndex(number, pairs)

    order = grain.MapDataset.range(units).shuffle(order_seed)
    in_batches = order.batch(
        batch_pairs, drop_remainder=True, batch_fn=lambda numbers: np.array(numbers, np.int64)
    )
    return in_batches.repeat().map_with_index(batch)


def _pick(starts: np.ndarray, documents: np.ndarray, epoch: int, seed: int) -> np.ndarray:
    """int64[n]: of each document pair number (random + epoch) mod its pairs, so that its pairs take
    turns.
    """
    pairs = starts[documents + 1] - starts[documents]
    first = _mix(documents.astype(np.uint64) + (np.uint64(seed) << np.uint64(32))) % pairs.astype(
        np.uint64
    )
    return starts[documents] + (first.astype(np.int64) + epoch) % pairs


def _mix(values: np.ndarray) -> np.ndarray:
    """uint64 -> uint64, well mixed: the finaliser of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
