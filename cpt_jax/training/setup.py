"""Sets up a run from its config: reads the data and checks everything before the first step."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.experimental import multihost_utils

from cpt_jax.data.batch import Batch, Layout, make_local_batches, plan_layout
from cpt_jax.data.mixture import (
    count_epochs,
    count_source_epochs,
    fix_source_rules,
    get_source_classes,
    make_batches,
    read_source_prompts,
)
from cpt_jax.data.pairs import Pair, Source, check_negatives, compute_content_id, spread_indices
from cpt_jax.data.prepared import find_cleaned_sources
from cpt_jax.data.prompted_source import PromptedSource
from cpt_jax.data.token_reader import TokenReader
from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.origin.earlier_run import EarlierRun, find_latest_checkpoint
from cpt_jax.origin.frozen_base import describe_base, get_adapter_base, open_checked_base
from cpt_jax.origin.pretrained import PlannedModel
from cpt_jax.origin.resolve import Model, Origin, Scratch, resolve_origin
from cpt_jax.runs.code_version import get_code_version
from cpt_jax.runs.config import check_resume, check_workdir, to_json_values
from cpt_jax.runs.provenance import Base, Provenance
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import assign_mesh_shardings
from cpt_jax.storage.paths import make_absolute
from cpt_jax.text.pretrained_tokenizer import PretrainedTokenizer
from cpt_jax.text.prompt_tokenizer import TextTokenizer
from cpt_jax.training.agreed_rows import agree_on_rows
from cpt_jax.training.form import find_begin_ids, resolve_equality, resolve_form
from cpt_jax.training.objective import HeldOut, Objective
from cpt_jax.training.resolve import Resolved, replace_architecture, resolve, resolve_architecture
from cpt_jax.training.run_tokenizer import resolve_tokenizer, wrap_in_template
from cpt_jax.training.sections import SECTION_FUNCTIONS, Evaluation, add_defaults, check_sections
from cpt_jax.training.sizes import assume_longest, keep_sizes, read_lengths, read_steps
from cpt_jax.training.step import TrainState, init_state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Resolved):
    """A run that is ready to train.

    Attributes:
      directory: paths of the run's files.
      tokenizer: the run's tokenizer.
      sources: sources of training pairs, by name.
      epochs: number of times that each source is read in all steps, by name.
      reader: converts pairs to token ids.
      layout: layout of a batch over devices, chunks and rows.
      indices: indices of the pairs of each batch; element i is the batch of step i + 1. For a
        language model, a pair is one text (data/sources/documents.py).
      heldout_pairs: the held-out pairs; [] if none are held out.
      origin: model that a new run starts from; Scratch if the run resumes from its own checkpoint.
      base: the opened model whose weights a LoRA run keeps frozen; None if all weights are trained.
      provenance: metadata stored with every checkpoint.
      changes: one line for each config key, and for the code version, that changed since the run
        began.
    """

    directory: RunDir
    tokenizer: TextTokenizer
    sources: Mapping[str, Source]
    epochs: Mapping[str, float]
    reader: TokenReader
    layout: Layout
    indices: grain.MapDataset
    heldout_pairs: Sequence[Pair]
    origin: Origin
    base: Model | None
    provenance: Provenance
    changes: Sequence[str]

    def init(self) -> TrainState:
        """Returns a randomly initialized state."""
        return init_state(self.encoder_config, self.objective, self.optimizer, self.seed, self.lora)

    def make_abstract_state(self) -> TrainState:
        """Returns the shapes, dtypes and shardings of the state, without allocating it."""
        return assign_mesh_shardings(jax.eval_shape(self.init), self.mesh)

    def iterate_batches_after(self, step: int) -> Iterator[Mapping[int, Batch]]:
        """Returns an iterator over this process's parts of the batches of steps `step` + 1,
        `step` + 2, ..., which threads prepare ahead of time.

        All processes must iterate over it together; see cpt_jax/training/agreed_rows.py.
        """
        options = grain.ReadOptions(
            num_threads=self.data.threads, prefetch_buffer_size=self.data.prefetch
        )
        all_batches = make_local_batches(self.indices, self.reader, self.layout, self.mesh)
        batches = iter(all_batches[step:].to_iter_dataset(options))
        if jax.process_count() == 1 or not self.layout.smaller_row_counts:
            return batches
        return agree_on_rows(batches, self.mesh)

    @property
    def held_out(self) -> HeldOut:
        """The held-out pairs, and all that is needed to read and embed them."""
        tokenizer = self.reader.tokenizer
        return HeldOut(self.heldout_pairs, tokenizer, self.data, self.layout, self.mesh)


def set_up(config: Mapping[str, Any], workdir: Path) -> Run:
    """Returns a run that is ready to train.

    Reads the data, and checks everything that can be checked before the first step.

    Args:
      config: the sections of configs/base.py, as plain values.
      workdir: the run's directory.

    Raises:
      UserError: the config or the data is invalid, or the directory holds another run.
    """
    check_sections(config)
    check_workdir(workdir)
    _check_origin_of_adapters(config)
    directory = RunDir(make_absolute(workdir))
    start = _find_start(config, directory)
    changes = _list_changes(start, workdir)
    config = add_defaults(start.config)

    def make_tokenizer(objective: Objective) -> TextTokenizer:
        tokenizer = resolve_tokenizer(config, start.previous or start.origin, objective)
        return wrap_in_template(tokenizer, config['prompt'], start.bos_ids)

    # Everything that needs no data is checked before the data is read.
    checked = resolve(assume_longest(config, start.origin), jax.devices(), make_tokenizer)
    objective = checked.objective
    objective.check_origin(start.origin)
    tokenizer = checked.tokenizer
    assert tokenizer is not None  # `resolve` calls make_tokenizer
    sections = config['data']['sources']
    sources, weights = objective.load_sources(config['data'], 'train', tokenizer)
    cleaned = find_cleaned_sources(sources)
    sources, reading_tokenizer = _put_prompts(sources, sections, tokenizer)
    fingerprints = {name: source.fingerprint for name, source in sources.items()}
    if start.previous:
        _check_data(start.previous.provenance.sources, fingerprints, workdir)
    check_negatives(sources, checked.data.negatives)
    config = read_steps(config, sources)
    config = read_lengths(config, start.origin, list(sources.values()), reading_tokenizer)
    resolved = resolve(config, jax.devices(), lambda _: tokenizer)
    _check_prompts_leave_room(resolved)
    weights = count_source_epochs(sections, sources, resolved.train.batch_pairs) or weights
    indices = make_batches(sources, weights, resolved.seed, resolved.train.batch_pairs)
    reader = objective.make_reader(list(sources.values()), reading_tokenizer, resolved.data)
    if reader.targets:
        fingerprints |= reader.targets.fingerprints
    if start.previous:
        _check_vectors(start.previous.provenance.sources, fingerprints, workdir)
    agrees_on_rows = start.previous is None or start.previous.provenance.agrees_on_rows
    layout = _plan_rows(reader, resolved, agrees_on_rows)
    base, base_description = _open_base(start, resolved.lora, workdir)
    heldout_pairs = _load_heldout_pairs(resolved.evaluation, config, objective, tokenizer)
    _check_heldout_is_used(config, heldout_pairs)
    resolved = dataclasses.replace(
        resolved, objective=objective.with_baseline(reader, heldout_pairs)
    )
    provenance = Provenance(
        config=to_json_values(_keep_keys(config, start.config)),
        tokenizer=tokenizer.fingerprint,
        sources=fingerprints,
        code=get_code_version(),
        inherits=start.inherits,
        begin=start.bos_ids,
        pretrained=(start.previous or start.origin).pretrained_config,
        base=base_description,
        own_tokenizer=(tokenizer.settings if isinstance(tokenizer, PretrainedTokenizer) else None),
        cleaned=cleaned,
        agrees_on_rows=agrees_on_rows,
    )
    return Run(
        **vars(resolved),
        directory=directory,
        sources=sources,
        epochs=count_epochs(sources, weights, resolved.train.steps, resolved.train.batch_pairs),
        reader=reader,
        layout=layout,
        indices=indices,
        heldout_pairs=heldout_pairs,
        origin=start.origin,
        base=base,
        provenance=provenance,
        changes=changes,
    )


def _keep_keys(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config without the defaults that `given` lacks."""
    return {
        name: {key: value[key] for key in given[name]} if isinstance(value, Mapping) else value
        for name, value in config.items()
    }


def _check_origin_of_adapters(config: Mapping[str, Any]) -> None:
    """Raises UserError for LoRA without init_from.

    A plan does not call this: it needs no weights.
    """
    rank = config['lora'].get('rank')
    if rank and not config['init_from']:
        raise UserError(
            f'lora.rank={rank} needs init_from: set it to a pretrained model or a run, whose '
            f'weights are kept frozen'
        )


def _plan_rows(reader: TokenReader, resolved: Resolved, agrees_on_rows: bool) -> Layout:
    """Returns the layout of the batches.

    Args:
      reader: reader of the pairs.
      resolved: the resolved sections of the config.
      agrees_on_rows: see Provenance. Earlier runs go on with one row count.
    """
    data, train = resolved.data, resolved.train
    can_choose = jax.process_count() == 1 or agrees_on_rows
    return plan_layout(
        reader,
        resolved.mesh,
        train.batch_pairs,
        train.encode_chunks,
        data.row_length,
        data.rows,
        data.packed,
        data.row_choices if can_choose else 1,
    )


def set_up_on_all_processes(config: Mapping[str, Any], workdir: Path) -> Run:
    """Calls `set_up` on all processes and checks that they agree.

    Raises:
      UserError: see `set_up`; or the config, tokenizer, data or code differs between processes.
    """
    run = set_up(config, workdir)
    latest = find_latest_checkpoint(run.directory)
    mine = {field: getattr(run.provenance, field) for field in vars(run.provenance)}
    mine |= {
        'layout': run.layout,
        'heldout': len(run.heldout_pairs),
        'checkpoint in --workdir': latest and latest.step,
    }
    # One hash per property, so that all processes exchange arrays of the same size.
    names = sorted(mine)
    hashes = np.array([compute_content_id(repr(mine[name])) for name in names], np.int32)
    hashes_of_all = multihost_utils.process_allgather(hashes).reshape(-1, len(hashes))
    differing = [
        name
        for name, column in zip(names, hashes_of_all.T, strict=True)
        if len(set(column.tolist())) > 1
    ]
    if differing:
        own_values = '; '.join(f'{name}: {mine[name]}' for name in differing)
        raise UserError(
            f'the processes differ in {", ".join(differing)}: give all of them the same flags, '
            f'files and --workdir. This process has {own_values}'
        )
    return run


@dataclasses.dataclass(frozen=True)
class _Start:
    """The checkpoint or model from which a run starts.

    Attributes:
      config: the config with the architecture to train.
      previous: the run's own latest checkpoint; None for a new run.
      origin: model that a new run starts from; Scratch for a resumed run, which does not need its
        origin any more.
      inherits: whether the architecture is inherited from the origin.
      bos_ids: ids that begin every text; see `Provenance.begin`.
    """

    config: Mapping[str, Any]
    previous: EarlierRun | None
    origin: Origin
    inherits: bool
    bos_ids: list[int] | None


def _find_start(config: Mapping[str, Any], directory: RunDir) -> _Start:
    """Finds the run's own latest checkpoint; for a new run, the model that `init_from` names."""
    previous = find_latest_checkpoint(directory)
    stored = previous.provenance.config['data']['sources'] if previous else None
    data = config['data']
    sources = fix_source_rules(data['sources'], stored)
    config = {**config, 'data': {**data, 'sources': sources}}
    if previous is None:
        origin = resolve_origin(config['init_from'])
        config, inherits = resolve_architecture(config, origin)
        return _Start(config, None, origin, inherits, find_begin_ids(config, origin))
    if previous.provenance.base and config['init_from'] != previous.provenance.config['init_from']:
        previous = dataclasses.replace(previous, base_path=config['init_from'])
    inherits = previous.inherits_architecture
    config = resolve_form(config, Scratch(), previous)
    config = resolve_equality(config, previous.provenance.config)
    if inherits:
        config = replace_architecture(config, *previous.model_section_and_vocab_size)
    config = keep_sizes(config, previous.provenance.config)
    return _Start(config, previous, Scratch(), inherits, previous.provenance.begin)


def _open_base(start: _Start, lora: LoRA, workdir: Path) -> tuple[Model | None, Base | None]:
    """Returns the opened base of a LoRA run and its description; (None, None) if all parameters are
    trained.
    """
    origin = start.origin
    previous = start.previous
    if not lora.rank:
        if isinstance(origin, EarlierRun):
            origin.check_has_no_adapters()
        return None, None
    if previous:
        description = get_adapter_base(previous)
        base = open_checked_base(description, str(workdir))
        return base, dataclasses.replace(description, path=describe_base(base).path)
    # set_up has refused LoRA from scratch, and only a plan has a planned model.
    assert not isinstance(origin, Scratch | PlannedModel)
    return origin, describe_base(origin)


def _load_heldout_pairs(
    evaluation: Evaluation,
    config: Mapping[str, Any],
    objective: Objective,
    tokenizer: TextTokenizer,
) -> list[Pair]:
    """Returns up to `evaluation.pairs` held-out pairs, in equal numbers from the sources that have
    any.
    """
    if not evaluation.is_on:
        return []
    sources, _ = objective.load_sources(config['data'], 'heldout', tokenizer)
    sources, _ = _put_prompts(sources, config['data']['sources'], tokenizer)
    pairs_per_source, remainder = divmod(evaluation.pairs, max(len(sources), 1))
    pairs = []
    for position, source in enumerate(sources.values()):
        count = pairs_per_source + (position < remainder)
        pairs += [source[int(index)] for index in spread_indices(len(source), count)]
    return pairs


def _put_prompts(
    sources: dict[str, Source], sections: Mapping[str, Mapping[str, Any]], tokenizer: TextTokenizer
) -> tuple[dict[str, Source], TextTokenizer]:
    """Returns the sources and the tokenizer that reads them.

    If a source has prompts of its own, all sources put the prompts before their texts, and the
    tokenizer puts none.
    """
    if not any(map(read_source_prompts, sections.values())):
        return sources, tokenizer
    assert isinstance(tokenizer, PretrainedTokenizer)  # resolve_form has refused the others
    prompted: dict[str, Source] = {
        name: PromptedSource(source, tokenizer.prompts | read_source_prompts(sections[name]))
        for name, source in sources.items()
    }
    return prompted, tokenizer.with_prompts(dict.fromkeys(tokenizer.prompts, ''))


def _check_prompts_leave_room(resolved: Resolved) -> None:
    """Raises UserError if the prompts of a source leave no room for its texts."""
    for name, section in resolved.data.sources.items():
        if prompts := read_source_prompts(section):
            assert isinstance(resolved.tokenizer, PretrainedTokenizer)
            around = resolved.tokenizer.with_prompts(prompts).added_length
            what = f'special tokens and prompt of data.sources.{name}'
            resolved.objective.check_lengths(resolved.data, resolved.encoder_config, around, what)


def _check_heldout_is_used(config: Mapping[str, Any], heldout_pairs: Sequence[Pair]) -> None:
    """Raises UserError if a key needs held-out pairs and there are none."""
    for section, key in [('checkpoint', 'keep_best'), ('evaluation', 'patience')]:
        value = config[section].get(key)
        if value and not heldout_pairs:
            raise UserError(
                f'{section}.{key}={value}: needs held-out pairs: set the holdout of a source and '
                f'the evaluation section, or turn it off with --config.{section}.{key}=0'
            )


def _check_data(before: Mapping[str, str], now: Mapping[str, str], workdir: Path) -> None:
    for name in now:
        if before.get(name) != now[name]:
            raise UserError(
                f'data.sources.{name} is not the data that {workdir} was trained on: restore the '
                f'original data, or give another --workdir'
            )


def _check_vectors(before: Mapping[str, str], now: Mapping[str, str], workdir: Path) -> None:
    """Raises UserError if the vectors of a guide or teacher are not those of the run.

    Their fingerprints are stored among those of the sources, by config key.
    """
    for key in sorted(before.keys() | now.keys()):
        if key.startswith('loss.') and before.get(key) != now.get(key):
            raise UserError(
                f'{key} does not name the vectors that {workdir} was trained with: restore them, '
                f'or give another --workdir'
            )


def _has_moved_origin(before: Provenance, init_from: str) -> bool:
    """Returns whether `init_from` is another path of the model that a run started from.

    The weights of a LoRA run's base are compared when it is opened. Other runs need their origin
    only at their start and have not stored a fingerprint of it, so its config.json is compared.
    """
    if not init_from or init_from == before.config['init_from']:
        return False
    if before.base:
        return True
    found = resolve_origin(init_from, must_exist=False).pretrained_config
    return found is not None and found == before.pretrained


def _list_changes(start: _Start, workdir: Path) -> list[str]:
    """Returns one line for each config key, and for the code version, that changed since the run
    began.

    Raises:
      UserError: a key changed that must not.
    """
    if start.previous is None:
        return []
    before = start.previous.provenance
    sections = SECTION_FUNCTIONS | get_source_classes(start.config['data']['sources'])
    config = dict(start.config)
    moved = []
    if _has_moved_origin(before, config['init_from']):
        moved = [f'init_from: {before.config["init_from"]!r} -> {config["init_from"]!r}']
        config['init_from'] = before.config['init_from']
    changes = check_resume(before.config, config, workdir, sections) + moved
    if before.code != get_code_version():
        changes.append(f'code: {before.code} -> {get_code_version()}')
    return changes
