"""From a config to all that a run is made of."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.experimental import multihost_utils

from cpt_jax.data.batch import Batch, Layout, Tokens, local_batches, plan_layout
from cpt_jax.data.mixture import batches, source_functions
from cpt_jax.data.pairs import Pair, Source, check_negatives, content_id, spread_over
from cpt_jax.data.sources.text import TokenCounter
from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.origin.earlier_run import EarlierRun, find_latest
from cpt_jax.origin.frozen_base import base_of_adapters, check_base, describe_base
from cpt_jax.origin.resolve import Model, Origin, Scratch, resolve_origin
from cpt_jax.runs.code_version import code_version
from cpt_jax.runs.config import as_json, check_resume, check_workdir
from cpt_jax.runs.provenance import Base, Provenance
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import on_mesh
from cpt_jax.text.prompt_tokenizer import PromptTokenizer
from cpt_jax.text.tokenizer import Tokenizer
from cpt_jax.training.objective import HeldOut, Objective
from cpt_jax.training.resolve import Resolved, inherit, resolve, with_architecture
from cpt_jax.training.run_tokenizer import resolve_tokenizer, wrap_in_template
from cpt_jax.training.sections import FUNCTIONS, Evaluation, check_sections, with_defaults
from cpt_jax.training.step import TrainState, init_state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Resolved):
    """All that a run is made of.

    Attributes:
      directory: the run's files.
      tokenizer: from texts to ids.
      sources: source of training pairs, by name.
      reader: from pairs to token ids.
      layout: how a batch is laid out over devices, chunks and rows.
      indices: [step - 1] -> which pairs. For a language model a pair is one text
        (data/sources/documents.py).
      heldout: the held-out pairs; [] if nothing is held out.
      origin: what the run starts from; Scratch where it goes on from its own checkpoint.
      base: the frozen weights of a LoRA run, opened.
      provenance: metadata that go into every checkpoint.
      changes: one line for each config key that differs from when the run began.
    """

    directory: RunDir
    tokenizer: Tokenizer | PromptTokenizer
    sources: Mapping[str, Source]
    reader: Tokens
    layout: Layout
    indices: grain.MapDataset
    heldout: Sequence[Pair]
    origin: Origin
    base: Model | None
    provenance: Provenance
    changes: Sequence[str]

    def init(self) -> TrainState:
        """Returns a fresh state."""
        return init_state(self.encoder_config, self.objective, self.optimizer, self.seed, self.lora)

    def abstract_state(self) -> TrainState:
        """Returns shapes, dtypes and shardings of the state; costs nothing."""
        return on_mesh(jax.eval_shape(self.init), self.mesh)

    def batches_after(self, step: int) -> Iterator[Mapping[int, Batch]]:
        """Returns this process's parts of the batches of steps `step` + 1, `step` + 2, ...; they
        are made ahead in threads.
        """
        options = grain.ReadOptions(
            num_threads=self.data.threads, prefetch_buffer_size=self.data.prefetch
        )
        all_batches = local_batches(self.indices, self.reader, self.layout, self.mesh)
        return iter(all_batches[step:].to_iter_dataset(options))

    @property
    def held_out(self) -> HeldOut:
        """The held-out pairs, and how they are read."""
        return HeldOut(self.heldout, self.tokenizer, self.data, self.layout, self.mesh)


def set_up(config: Mapping[str, Any], workdir: Path) -> Run:
    """Reads the data and checks everything that can be wrong before the first step.

    Raises:
      UserError: see `train`.
    """
    check_sections(config)
    check_workdir(workdir)
    _check_origin_of_adapters(config)
    directory = RunDir(workdir.absolute())
    start = _find_start(config, directory)
    changes = _list_changes(start, workdir)
    config = with_defaults(start.config)

    def make_tokenizer(objective: Objective) -> Tokenizer | PromptTokenizer:
        tokenizer = resolve_tokenizer(config, start.previous or start.origin, objective)
        return wrap_in_template(tokenizer, config['prompt'], start.bos_ids)

    resolved = resolve(config, jax.devices(), make_tokenizer)
    objective, tokenizer = resolved.objective, resolved.tokenizer
    assert tokenizer is not None  # make_tokenizer has made it
    sources, weights = objective.load_sources(config['data']['sources'], 'train', tokenizer)
    fingerprints = {name: source.fingerprint for name, source in sources.items()}
    if start.previous:
        _check_data(start.previous.provenance.sources, fingerprints, workdir)
    check_negatives(sources, resolved.data.negatives)
    indices = batches(sources, weights, resolved.seed, resolved.train.batch_pairs)
    reader = objective.make_reader(list(sources.values()), tokenizer, resolved.data)
    layout = _plan_rows(reader, resolved)
    base, described = _open_base(start, resolved.lora, workdir)
    heldout = _load_heldout_pairs(resolved.evaluation, config, objective, tokenizer)
    resolved = dataclasses.replace(resolved, objective=objective.with_baseline(reader, heldout))
    provenance = Provenance(
        config=as_json(start.config),
        tokenizer=tokenizer.fingerprint,
        sources=fingerprints,
        code=code_version(),
        inherits=start.inherits,
        begin=start.bos_ids,
        pretrained=(start.previous or start.origin).pretrained_config,
        base=described,
    )
    return Run(
        **vars(resolved),
        directory=directory,
        sources=sources,
        reader=reader,
        layout=layout,
        indices=indices,
        heldout=heldout,
        origin=start.origin,
        base=base,
        provenance=provenance,
        changes=changes,
    )


def _check_origin_of_adapters(config: Mapping[str, Any]) -> None:
    """Raises UserError for LoRA from scratch; a plan needs no weights, and allows it."""
    rank = config['lora'].get('rank')
    if rank and not config['init_from']:
        raise UserError(
            f'lora.rank={rank} needs init_from: a pretrained model or a run, whose weights stay as '
            f'they are'
        )


def _plan_rows(reader: Tokens, resolved: Resolved) -> Layout:
    data, train = resolved.data, resolved.train
    return plan_layout(
        reader,
        resolved.mesh,
        train.batch_pairs,
        train.encode_chunks,
        data.row_length,
        data.rows,
        data.packed,
        data.row_choices,
    )


def set_up_together(config: Mapping[str, Any], workdir: Path) -> Run:
    """Calls `set_up` on all processes, which must have read the same.

    Raises:
      UserError: also where another process has another config, tokenizer, data or code.
    """
    run = set_up(config, workdir)
    latest = find_latest(run.directory)
    mine = {field: getattr(run.provenance, field) for field in vars(run.provenance)}
    mine |= {
        'layout': run.layout,
        'heldout': len(run.heldout),
        'checkpoint in --workdir': latest and latest.step,
    }
    ids = np.array([content_id(repr(mine[name])) for name in sorted(mine)], np.int32)
    everyones = multihost_utils.process_allgather(ids).reshape(-1, len(ids))
    differ = [
        name
        for name, column in zip(sorted(mine), everyones.T, strict=True)
        if len(set(column.tolist())) > 1
    ]
    if differ:
        said = '; '.join(f'{name}: {mine[name]}' for name in differ)
        raise UserError(
            f'the processes differ in {", ".join(differ)}; all need the same flags, files and '
            f'--workdir. This one has {said}'
        )
    return run


@dataclasses.dataclass(frozen=True)
class _Start:
    """What a run starts from, and what it has from there.

    Attributes:
      config: the config with the architecture that is trained.
      previous: the run's own latest checkpoint; None for a new run.
      origin: what a new run starts from; Scratch for a run that goes on, whose origin may be gone.
      inherits: whether the architecture is that of the origin.
      bos_ids: see `Provenance.begin`.
    """

    config: Mapping[str, Any]
    previous: EarlierRun | None
    origin: Origin
    inherits: bool
    bos_ids: list[int] | None


def _find_start(config: Mapping[str, Any], directory: RunDir) -> _Start:
    """Returns the run's own latest checkpoint, or else what `init_from` names."""
    previous = find_latest(directory)
    if previous is None:
        origin = resolve_origin(config['init_from'])
        config, inherits = inherit(config, origin)
        return _Start(config, None, origin, inherits, origin.bos_ids)
    inherits = previous.inherits_architecture
    if inherits:
        config = with_architecture(config, *previous.architecture)
    return _Start(config, previous, Scratch(), inherits, previous.provenance.begin)


def _open_base(start: _Start, lora: LoRA, workdir: Path) -> tuple[Model | None, Base | None]:
    """Returns the base of a LoRA run, opened and described; (None, None) if all parameters are
    trained.
    """
    origin, previous = start.origin, start.previous
    if not lora.rank:
        if isinstance(origin, EarlierRun):
            origin.refuse_adapters()
        return None, None
    if previous:
        described = base_of_adapters(previous)
        return check_base(described, str(workdir)), described
    assert not isinstance(origin, Scratch)  # set_up has refused LoRA from scratch
    return origin, describe_base(origin)


def _load_heldout_pairs(
    evaluation: Evaluation,
    config: Mapping[str, Any],
    objective: Objective,
    tokenizer: TokenCounter,
) -> list[Pair]:
    """Returns up to `evaluation.pairs` held-out pairs, evenly from the sources that have any."""
    if not evaluation.is_on:
        return []
    sources, _ = objective.load_sources(config['data']['sources'], 'heldout', tokenizer)
    share, more = divmod(evaluation.pairs, max(len(sources), 1))
    pairs = []
    for number, source in enumerate(sources.values()):
        chosen = spread_over(len(source), share + (number < more))
        pairs += [source[int(index)] for index in chosen]
    return pairs


def _check_data(before: Mapping[str, str], now: Mapping[str, str], workdir: Path) -> None:
    for name in now:
        if before.get(name) != now[name]:
            raise UserError(
                f'data.sources.{name} is not the data that {workdir} was trained on: put it back, '
                f'or give another --workdir'
            )


def _list_changes(start: _Start, workdir: Path) -> list[str]:
    """Returns one line for each thing that is not as the run began with, and may change."""
    if start.previous is None:
        return []
    before = start.previous.provenance
    sections = FUNCTIONS | source_functions(start.config['data']['sources'])
    changes = check_resume(before.config, start.config, workdir, sections)
    if before.code != code_version():
        changes.append(f'code: {before.code} -> {code_version()}')
    return changes
