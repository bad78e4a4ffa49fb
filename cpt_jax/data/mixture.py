"""The indices of the pairs in each batch: a pure function of (seed, step), so that checkpoints need
no data state.

A batch comes from one source, the same on every host: negatives from another source could be
recognized by their style.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import grain
import numpy as np

from cpt_jax.data.cutting import TokenCounter
from cpt_jax.data.equality import LATEST_RULE
from cpt_jax.data.pairs import Source, digest_texts
from cpt_jax.data.source_keys import SOURCE_KEYS
from cpt_jax.data.sources.csv_pairs import CsvSource
from cpt_jax.data.sources.jsonl import JsonlSource
from cpt_jax.data.sources.python_source import PythonSource
from cpt_jax.data.sources.text_or_prepared import open_text
from cpt_jax.data.sources.tfds_pairs import TfdsSource
from cpt_jax.runs.config import LEGACY_SOURCE_DEFAULTS, check_section
from cpt_jax.runs.config_types import check_type
from cpt_jax.runtime.errors import UserError
from cpt_jax.text.tokenizer import SIDES, Side

KINDS: dict[str, Callable[..., Source]] = {
    'python_source': PythonSource,
    'jsonl': JsonlSource,
    'csv': CsvSource,
    'tfds': TfdsSource,
    'text': open_text,
}

# Arguments of these classes that the run sets, not the config.
_SET_BY_RUN = ('split', 'tokenizer', 'equal_texts', 'verify')


def get_source_arguments(kind: str) -> dict[str, inspect.Parameter]:
    """Returns the arguments of a kind's class that a config may set, by name."""
    parameters = inspect.signature(KINDS[kind]).parameters
    return {name: parameter for name, parameter in parameters.items() if name not in _SET_BY_RUN}


def get_source_classes(sections: Mapping[str, Mapping]) -> dict[str, Callable[..., Source]]:
    """Returns the class of each source in a config's `data.sources`, by 'data.sources.NAME', from
    which `check_resume` takes default values.

    Sources of an unknown kind are left out; `make_sources` reports them.
    """
    return {
        f'data.sources.{name}': KINDS[section['kind']]
        for name, section in sections.items()
        if section.get('kind') in KINDS
    }


def fix_source_rules(
    sections: Mapping[str, Mapping], stored: Mapping[str, Mapping] | None
) -> dict[str, dict]:
    """Returns a config's `data.sources` with the keys of LEGACY_SOURCE_DEFAULTS, which a run stores
    so that later versions read its data alike.

    Args:
      sections: the sections of the config. Keys that they have are kept.
      stored: `data.sources` of the run to resume; None for a new run, which gets today's defaults.
    """
    fixed = {}
    for name, section in sections.items():
        kind = section.get('kind')
        arguments = get_source_arguments(kind) if kind in KINDS else {}
        rules = {key: arguments[key].default for key in LEGACY_SOURCE_DEFAULTS if key in arguments}
        if stored is not None:
            before = LEGACY_SOURCE_DEFAULTS | dict(stored.get(name) or {})
            rules = {key: before[key] for key in rules}
        fixed[name] = {**rules, **section}
    return fixed


class BatchIndex(NamedTuple):
    """The indices of the pairs in a batch.

    Attributes:
      source: index of the source, in the order of the mapping given to `make_batches`.
      pairs: int64[batch_pairs], distinct indices of pairs of that source.
    """

    source: int
    pairs: np.ndarray


def make_sources(
    sections: Mapping[str, Mapping],
    split: str,
    tokenizer: TokenCounter,
    wrap: Callable[[Source], Source] = lambda source: source,
    equal_texts: str = LATEST_RULE,
    verify: bool = False,
) -> tuple[dict[str, Source], dict[str, float]]:
    """Returns the sources of a config's `data.sources` and their weights, by name in sorted order.

    Args:
      sections: a section for each source, by name. It has `kind` (one of KINDS), `weight`, the
        keyword arguments of the kind's class, and optionally `prompt_x` and `prompt_y`.
      split: 'train', 'heldout' or 'all'. 'heldout' leaves out sources without held-out pairs.
      tokenizer: tokenizer for sources that limit texts by tokens.
      wrap: function applied to each source, optional.
      equal_texts: value of data.equal_texts, for sources that are split by their texts.
      verify: whether to read all files in full to find out whether they changed.

    Raises:
      UserError: a section is invalid; the message contains the key.
    """
    values = {
        'split': split,
        'tokenizer': tokenizer,
        'equal_texts': equal_texts,
        'verify': verify,
    }
    sources = {
        name: wrap(_make_source(name, dict(sections[name]), values)) for name in sorted(sections)
    }
    kept = {name: source for name, source in sources.items() if len(source) or split != 'heldout'}
    return kept, {name: _parse_weight(name, sections[name].get('weight', 1.0)) for name in kept}


def _make_source(name: str, section: dict, values: Mapping[str, object]) -> Source:
    """Returns the source of a section, with those of the run's `values` that its class takes."""
    where = f'data.sources.{name}'
    kind = section.pop('kind', None)
    if kind not in KINDS:
        raise UserError(f'{where}.kind is {kind!r} and must be one of {", ".join(KINDS)}')
    if section.pop('weight', None) is None and not section.get('epochs'):
        raise UserError(f'config key {where}.weight is missing')
    for key in SOURCE_KEYS.keys() - {'kind', 'weight'}:
        check_type(f'{where}.{key}', section.pop(key, None), SOURCE_KEYS[key] | None)
    arguments = inspect.signature(KINDS[kind]).parameters
    given: dict[str, object] = {key: values[key] for key in values if key in arguments}
    check_section(KINDS[kind], where, section, given)
    try:
        return KINDS[kind](**section, **given)
    except OSError as error:
        raise UserError(f'{where}: {error.filename}: cannot be read: {error.strerror}') from None
    except UserError as error:  # the message names the argument, so add the section
        raise UserError(
            f'{where}: {error} (arguments of this source are set with --config.{where}.NAME=VALUE)'
        ) from None


def read_source_prompts(section: Mapping[str, Any]) -> dict[Side, str]:
    """Returns the prompts of a source, by side: its `prompt_x` and `prompt_y`, where given."""
    found = {side: section.get(f'prompt_{side}') for side in SIDES}
    return {side: prompt for side, prompt in found.items() if prompt is not None}


def _parse_weight(name: str, weight: float) -> float:
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not 0 < weight < math.inf:
        raise UserError(
            f'data.sources.{name}.weight is {weight!r} and must be above 0; to leave the source '
            f'out, remove it from the config'
        )
    return float(weight)


def make_batches(
    sources: Mapping[str, Source], weights: Mapping[str, float], seed: int, batch_pairs: int
) -> grain.MapDataset:
    """Returns an endless data set whose element [step] is a BatchIndex.

    Each source is shuffled again in every epoch. The last pairs of an epoch that do not fill a
    batch are dropped; they differ from epoch to epoch. No batch crosses the end of an epoch, so a
    batch never contains a pair twice. If a source has documents, an epoch has one pair of each
    document, and the next epoch the document's next pair. A batch therefore has at most one pair of
    a document. Sources alternate deterministically in proportion to their weights (to 1 %) and
    repeat without end.

    Args:
      sources: sources by name. The name seeds the source's order, which other sources therefore do
        not change.
      weights: positive numbers by name: relative frequency of the source's batches.
      seed: seed of the order of pairs.
      batch_pairs: number of pairs in a batch.

    Raises:
      UserError: a source has fewer pairs, or documents, than a batch.
    """
    data_sets = [
        _make_source_batches(i, name, source, seed, batch_pairs)
        for i, (name, source) in enumerate(sources.items())
    ]
    relative = np.array([weights[name] for name in sources])
    # grain truncates weights to integers in which the smallest weight is 100. Giving it such
    # integers rounds them instead.
    return grain.MapDataset.mix(data_sets, np.rint(100 * relative / relative.min()).tolist())


def count_batches_per_epoch(sources: Mapping[str, Source], batch_pairs: int) -> int:
    """Returns the number of batches in which all sources are read once.

    Args:
      sources: sources by name.
      batch_pairs: number of pairs in a batch.

    Raises:
      UserError: a source has fewer pairs, or documents, than a batch.
    """
    return sum(
        _count_items(name, source, batch_pairs) // batch_pairs for name, source in sources.items()
    )


def count_source_epochs(
    sections: Mapping[str, Mapping], sources: Mapping[str, Source], batch_pairs: int
) -> dict[str, float] | None:
    """Returns the number of batches that each source gives to the whole run, from its key `epochs`;
    None if no source has it.

    Args:
      sections: the section of each source, by name.
      sources: sources by name.
      batch_pairs: number of pairs in a batch.

    Raises:
      UserError: some sources have the key and others do not, or a source has fewer pairs than a
        batch.
    """
    epochs = {name: sections[name].get('epochs') for name in sources}
    if not any(epochs.values()):
        return None
    batches = {}
    for name, source in sources.items():
        value = epochs[name]
        if not value or not 0 < value < math.inf:
            raise UserError(
                f'data.sources.{name}.epochs={value}: must be a number above 0, because '
                f'{next(other for other in epochs if epochs[other])} has epochs: set it for all '
                f'sources, or for none'
            )
        batches[name] = value * (_count_items(name, source, batch_pairs) // batch_pairs)
    return batches


def count_epochs(
    sources: Mapping[str, Source], weights: Mapping[str, float], steps: int, batch_pairs: int
) -> dict[str, float]:
    """Returns how many times each source is read in a run, by name.

    In an epoch of a source with documents, one pair of each document is read.

    Args:
      sources: sources by name.
      weights: relative frequency of each source's batches.
      steps: number of steps.
      batch_pairs: number of pairs in a batch.
    """
    total = sum(weights[name] for name in sources)
    return {
        name: steps
        * weights[name]
        / total
        / (_count_items(name, source, batch_pairs) // batch_pairs)
        for name, source in sources.items()
    }


def _count_items(name: str, source: Source, batch_pairs: int) -> int:
    """Returns the number of items that a source gives in an epoch: pairs, or one pair of each
    document.

    Raises:
      UserError: they are fewer than a batch.
    """
    items = len(source) if source.documents is None else len(source.documents) - 1
    if items < batch_pairs:
        what = 'pairs'
        if source.documents is not None:
            separator = f'data.sources.{name}.separator'
            what = f'documents (a batch has one pair of each; {separator} splits files into more)'
        raise UserError(
            f'data.sources.{name} has {items} {what}, fewer than train.batch_pairs={batch_pairs}: '
            f'lower train.batch_pairs or add data'
        )
    return items


def _make_source_batches(
    source_index: int, name: str, source: Source, seed: int, batch_pairs: int
) -> grain.MapDataset:
    """Returns the endless batches of one source; consecutive batches follow its shuffled order."""
    items = _count_items(name, source, batch_pairs)
    # grain shuffles with seed + epoch, so adjacent seeds would give the same orders one epoch
    # apart. A hash avoids this.
    order_seed = int(digest_texts(str(seed), name)[:8], 16)
    batches_per_epoch = items // batch_pairs

    def make_index(step: int, items_B: np.ndarray) -> BatchIndex:
        if source.documents is None:
            return BatchIndex(source_index, items_B)
        epoch = step // batches_per_epoch
        pairs_B = _pick_pairs(source.documents, items_B, epoch, order_seed)
        return BatchIndex(source_index, pairs_B)

    order = grain.MapDataset.range(items).shuffle(order_seed)
    in_batches = order.batch(
        batch_pairs, drop_remainder=True, batch_fn=lambda indices: np.array(indices, np.int64)
    )
    return in_batches.repeat().map_with_index(make_index)


def _pick_pairs(starts: np.ndarray, documents: np.ndarray, epoch: int, seed: int) -> np.ndarray:
    """Returns int64[n]: the index of one pair of each document.

    It is pair `(offset + epoch) % pairs_in_document` of each document, with a random offset, so
    that all pairs of a document are visited in turn.

    Args:
      starts: int64, as `Source.documents`.
      documents: int64[n], indices of the documents.
      epoch: index of the epoch.
      seed: seed of the offsets, below 2**32.
    """
    pairs = starts[documents + 1] - starts[documents]
    keys = documents.astype(np.uint64) + (np.uint64(seed) << np.uint64(32))
    offsets = _mix_bits(keys) % pairs.astype(np.uint64)
    return starts[documents] + (offsets.astype(np.int64) + epoch) % pairs


def _mix_bits(values: np.ndarray) -> np.ndarray:
    """Returns well-mixed uint64 hashes: the finalizer of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
