"""From a config to all that a run is made of."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

from cpt_jax import checkpoint
from cpt_jax.base_model import check_base, describe_base, refuse_adapters
from cpt_jax.code_version import code_version
from cpt_jax.config import as_json, build, check_resume, check_section, check_workdir
from cpt_jax.data.batch import Batch, DocumentTokens, Layout, Texts, Tokens, local_batches, plan_layout
from cpt_jax.data.documents import Documents
from cpt_jax.data.mixture import batches, make_sources
from cpt_jax.data.pairs import Pair, Source, check_negatives, content_id, spread_over
from cpt_jax.data.text import TokenCounter
from cpt_jax.embed import Embedder
from cpt_jax.errors import UserError
from cpt_jax.loss.infonce import InfoNCE
from cpt_jax.mesh import make_mesh, on_mesh
from cpt_jax.model.lora import LoRA
from cpt_jax.model.shape import Shape
from cpt_jax.pretrained import is_pretrained, open_pretrained
from cpt_jax.prompt import Prompt, configured
from cpt_jax.prompt_tokenizer import PromptTokenizer, beginning
from cpt_jax.tokenizer import Tokenizer, load_tokenizer, tokenizer_from_file, train_tokenizer
from cpt_jax.train.contrastive import Contrastive
from cpt_jax.train.language_model import LanguageModel, bytes_of, unigram_bits
from cpt_jax.train.objective import Objective, Params
from cpt_jax.train.optimizer import make_optimizer
from cpt_jax.train.step import TrainState, init_state

OBJECTIVES = ('contrastive', 'lm')
SECTIONS = ('tokenizer', 'prompt', 'data', 'model', 'lora', 'mesh', 'loss', 'optimizer', 'train', 'evaluation', 'checkpoint')


@dataclasses.dataclass(frozen=True)
class Data:
    """The `data` section; configs/base.py comments each key."""

    sources: Mapping[str, Mapping[str, Any]]
    max_tokens_x: int
    max_tokens_y: int
    row_length: int
    negatives: int = 0
    packed: bool = True
    rows: int = 0
    row_choices: int = 1
    threads: int = 2
    prefetch: int = 8

    def __post_init__(self):
        _check_least('data', self, negatives=0, rows=0, row_choices=1, row_length=1, threads=1, prefetch=1)


@dataclasses.dataclass(frozen=True)
class Train:
    """The `train` section."""

    steps: int
    batch_pairs: int
    encode_chunks: int = 1
    log_every: int = 10

    def __post_init__(self):
        _check_least('train', self, steps=1, batch_pairs=1, encode_chunks=1, log_every=1)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The `evaluation` section."""

    every_steps: int
    pairs: int

    def __post_init__(self):
        _check_least('evaluation', self, every_steps=0, pairs=0)


def _check_least(section: str, values: object, **least: int) -> None:
    for key, lowest in least.items():
        if getattr(values, key) < lowest:
            raise UserError(f'{section}.{key}={getattr(values, key)}: must be {lowest} or more')


@dataclasses.dataclass(frozen=True)
class Run:
    """All that a run is made of.

    Attributes:
      changes: lines for the config keys that are not as the run began with.
      indices: [step - 1] -> which pairs. Of a language model a pair is one text (data/documents.py).
    """

    train: Train
    evaluation: Evaluation
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer | PromptTokenizer
    sources: Mapping[str, Source]
    texts: Tokens
    layout: Layout
    indices: grain.MapDataset
    data: Data
    shape: Shape
    objective: Objective
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    seed: int
    init_from: str
    about: checkpoint.About
    changes: Sequence[str]
    heldout: Sequence[Pair]
    lora: LoRA = dataclasses.field(default_factory=LoRA)

    def init(self) -> TrainState:
        """A fresh state."""
        return init_state(self.shape, self.objective, self.optimizer, self.seed, self.lora)

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state; costs nothing."""
        return on_mesh(jax.eval_shape(self.init), self.mesh)

    def batches_after(self, step: int) -> Iterator[Mapping[int, Batch]]:
        """This process's parts of the batches of steps `step` + 1, `step` + 2, ...; made ahead in threads."""
        options = grain.ReadOptions(num_threads=self.data.threads, prefetch_buffer_size=self.data.prefetch)
        return iter(local_batches(self.indices, self.texts, self.layout, self.mesh)[step:].to_iter_dataset(options))

    def embedder(self, params: Params) -> Embedder:
        """The encoder, for embedding."""
        limits = {'x': self.data.max_tokens_x, 'y': self.data.max_tokens_y}
        return Embedder(params.encoder, self.tokenizer, self.mesh, limits)


def set_up(config: Mapping[str, Any], workdir: Path) -> Run:
    """Reads the data and checks everything that can be wrong before the first step.

    Raises:
      UserError: see `train`.
    """
    _check_sections(config)
    check_workdir(workdir)
    before = checkpoint.latest_about(workdir.absolute() / 'checkpoints')
    given, config = config, with_architecture(config, before and before[1])
    changes = _changes(before[1], config, workdir) if before else []
    mesh = build(make_mesh, 'mesh', config['mesh'], devices=jax.devices())
    train = build(Train, 'train', config['train'])
    data = build(Data, 'data', config['data'])
    objective = make_objective(config, data)
    evaluation = build(Evaluation, 'evaluation', config['evaluation'])
    optimizer, schedule = build(make_optimizer, 'optimizer', config['optimizer'], steps=train.steps)
    begin = before[1].get('begin') if before else _begin(config['init_from'])
    tokenizer = _in_prompt(_tokenizer(config, workdir, before), config['prompt'], begin)
    shape = build(Shape, 'model', config['model'], vocab_size=tokenizer.vocab_size).on(mesh.devices.flat[0].platform)
    shape.check_mesh(mesh)
    objective.check(shape)
    lora = build(LoRA, 'lora', config['lora'])
    if lora.rank and not config['init_from']:
        raise UserError(f'lora.rank={lora.rank} needs init_from: a pretrained model or a run, whose weights stay as they are')
    lora.check(shape, mesh)
    check_lengths(objective, data, shape, *((tokenizer.around, 'the template') if isinstance(tokenizer, PromptTokenizer) else ()))
    sources, weights = _sources(config, 'train', tokenizer)
    fingerprints = {name: source.fingerprint for name, source in sources.items()}
    _check_data(before[1]['sources'] if before else fingerprints, fingerprints, workdir)
    check_negatives(sources, data.negatives)
    indices = batches(sources, weights, config['seed'], train.batch_pairs)
    texts = _texts(objective, list(sources.values()), tokenizer, data)
    rows = data.row_length, data.rows, data.packed, data.row_choices
    layout = plan_layout(texts, mesh, train.batch_pairs, train.encode_chunks, *rows)
    about = {'config': as_json(config), 'tokenizer': tokenizer.fingerprint, 'sources': fingerprints, 'code': code_version()}
    about |= {'inherits': config is not given, 'begin': begin}
    about |= {'pretrained': before[1].get('pretrained') if before else _pretrained_config(config['init_from'])}
    about |= _base(config['init_from'], lora, before, workdir)
    heldout = _heldout_pairs(evaluation, config, tokenizer)
    if isinstance(objective, LanguageModel) and heldout:
        objective = LanguageModel(_unigram_bits(texts, heldout))
    return Run(
        train, evaluation, mesh, tokenizer, sources, texts, layout, indices, data, shape, objective, optimizer, schedule,
        config['seed'], config['init_from'], about, changes, heldout, lora,
    )  # fmt: skip


def set_up_together(config: Mapping[str, Any], workdir: Path) -> Run:
    """`set_up` on all processes, which must have read the same.

    Raises:
      UserError: also where another process has another config, tokenizer, data or code.
    """
    run = set_up(config, workdir)
    latest = checkpoint.latest_about(workdir.absolute() / 'checkpoints')
    mine = {'base': None} | run.about  # a process without LoRA has none: what is exchanged must be of one size
    mine |= {'layout': run.layout, 'heldout': len(run.heldout), 'checkpoint in --workdir': latest and latest[0]}
    ids = np.array([content_id(repr(mine[name])) for name in sorted(mine)], np.int32)
    everyones = multihost_utils.process_allgather(ids).reshape(-1, len(ids))
    differ = [name for name, column in zip(sorted(mine), everyones.T, strict=True) if len(set(column.tolist())) > 1]
    if differ:
        said = '; '.join(f'{name}: {mine[name]}' for name in differ)
        raise UserError(f'the processes differ in {", ".join(differ)}; all need the same flags, files and --workdir. This one has {said}')
    return run


def make_objective(config: Mapping[str, Any], data: Data) -> Objective:
    """The objective that a config names.

    Raises:
      UserError: there is no such one, or it has no use for another key.
    """
    loss = build(InfoNCE, 'loss', config['loss'])
    if config['objective'] == 'contrastive':
        return Contrastive(loss, len(data.sources))
    if config['objective'] != 'lm':
        raise UserError(f'objective={config["objective"]!r}: choose one of {", ".join(OBJECTIVES)}')
    if config['lora']['rank']:
        raise UserError(f'lora.rank={config["lora"]["rank"]}: objective=lm trains all parameters; set it to 0')
    if config['prompt']['template']:
        raise UserError('prompt.template: objective=lm reads texts as they are; leave it empty')
    if data.negatives:
        raise UserError(f'data.negatives={data.negatives}: objective=lm has no negatives; set it to 0')
    if odd := [key for key, value in config['loss'].items() if value != getattr(InfoNCE(), key)]:
        raise UserError(f'loss.{odd[0]}={config["loss"][odd[0]]!r}: objective=lm has no contrastive loss; leave it as in configs/base.py')
    return LanguageModel()


def _sources(config: Mapping[str, Any], split: str, tokenizer: TokenCounter) -> tuple[dict[str, Source], dict[str, float]]:
    """`make_sources`; for a language model the texts of each, in place of its pairs."""
    sections = config['data']['sources']
    if config['objective'] != 'lm':
        return make_sources(sections, split, tokenizer)
    # A document of one piece makes no pair, but is a text.
    sections = {name: {**section, 'min_pieces': 1} if section.get('kind') == 'text' else section for name, section in sections.items()}
    return make_sources(sections, split, tokenizer, Documents)


def _texts(objective: Objective, sources: Sequence[Source], tokenizer: Tokenizer, data: Data) -> Tokens:
    if isinstance(objective, LanguageModel):
        return DocumentTokens(sources, tokenizer, data.row_length)
    return Texts(sources, tokenizer, data.max_tokens_x, data.max_tokens_y, data.negatives)


def _unigram_bits(texts: Tokens, heldout: Sequence[Pair], sample: int = 4096) -> float:
    """Of a unigram byte model of up to `sample` texts of each source."""
    seen = [text for source in range(len(texts.sources)) for (text,) in texts(source, spread_over(len(texts.sources[source]), sample))[0]]
    return unigram_bits(*(bytes_of(tokens, texts.tokenizer) for tokens in (seen, [text for (text,), _ in texts.encode(heldout)])))


def _heldout_pairs(evaluation: Evaluation, config: Mapping[str, Any], tokenizer: Tokenizer) -> list[Pair]:
    """Up to `evaluation.pairs` held-out pairs, evenly from the sources that hold any out."""
    if not evaluation.every_steps or not evaluation.pairs:
        return []
    sources, _ = _sources(config, 'heldout', tokenizer)
    share, more = divmod(evaluation.pairs, max(len(sources), 1))
    chosen = [(source, spread_over(len(source), share + (number < more))) for number, source in enumerate(sources.values())]
    return [source[int(index)] for source, indices in chosen for index in indices]


def _check_sections(config: Mapping[str, Any]) -> None:
    known = {*SECTIONS, 'objective', 'seed', 'init_from'}
    for key in config.keys() - known:
        raise UserError(f'unknown config key {key}: a config has {", ".join(sorted(known))}')
    for key in known - config.keys():
        raise UserError(f'config key {key} is missing: begin a config with configs/base.py')


def with_architecture(config: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """The same; for a run that starts from a model of others or from a language model, with its architecture in place of the config's own.

    How it is computed stays the config's to say, and `model.causal=False` lets every token of a causal model see its whole text. Vectors
    are states at the closing delimiter, as of any run, whatever the pooling of the model was, and Dense modules behind it are left out.

    Args:
      before: what the run's checkpoint says, where it goes on: what it started from may be gone.
    """
    found, ids = _architecture(config['init_from'], config['objective'], before)
    if not found:
        return config
    chosen = config['model']
    kept = {key: chosen[key] for key in ('dropout', 'remat', 'attention', 'dtype', 'layer_loop')}
    model = found | kept | {'pooling': 'eos', 'causal': found.get('causal', True) and chosen['causal']}
    return {**config, 'model': model, 'tokenizer': {**config['tokenizer'], 'vocab_size': ids}}


def _architecture(init_from: str, objective: str, before: checkpoint.About | None) -> tuple[Mapping[str, Any], int]:
    """That of the model to start from, with its number of ids; ({}, 0) where the config's own counts."""
    if is_pretrained(init_from) and not (before and 'inherits' in before):
        found = open_pretrained(init_from)
        return found.shape, tokenizer_from_file(*found.tokenizer.file).vocab_size
    if before:
        about, inherits = before, before.get('inherits', False)
    else:
        try:
            about = checkpoint.read_about(*checkpoint.find(init_from, 'init_from')) if init_from else {}
        except UserError:  # a plan needs no run to be there; a run tells it when it looks for its tokenizer
            return {}, 0
        inherits = init_from and objective == 'contrastive' and checkpoint.objective_of(about) == 'lm'
    return (about['config']['model'], about['config']['tokenizer']['vocab_size']) if inherits else ({}, 0)


def _pretrained_config(init_from: str) -> Mapping[str, Any] | None:
    """config.json of the pretrained model that a run comes from, over other runs or not: an export is of that family."""
    if is_pretrained(init_from):
        return open_pretrained(init_from).config
    return checkpoint.read_about(*checkpoint.find(init_from, 'init_from')).get('pretrained') if init_from else None


def _begin(init_from: str) -> list[int] | None:
    """The ids that begin a text for the language model that a run comes from, over other runs or not; None where it comes from none."""
    if is_pretrained(init_from):
        found = open_pretrained(init_from)
        return list(found.tokenizer.begin) if found.shape.get('causal', True) else None
    if not init_from:
        return None
    directory, step = checkpoint.find(init_from, 'init_from')
    return beginning(checkpoint.read_about(directory, step), checkpoint.load_tokenizer_of(directory, step))


def _in_prompt(tokenizer: Tokenizer, section: Mapping[str, Any], begin: Sequence[int] | None) -> Tokenizer | PromptTokenizer:
    """With a template, the same around which texts stand in it. Raises UserError where no language model could make sense of one."""
    check_section(Prompt, 'prompt', section, ('demonstrations', 'clean'))  # which are of an evaluation
    prompt = configured(section)
    if prompt is None:
        return tokenizer
    if begin is None:
        raise UserError(
            'prompt.template goes with init_from, which must be a causal language model that can read it (no BERT, and not empty):'
            ' set both, or neither'
        )
    return PromptTokenizer(tokenizer, prompt, begin)


def _base(init_from: str, lora: LoRA, before: tuple[int, checkpoint.About] | None, workdir: Path) -> dict[str, Any]:
    """What a LoRA run says of its base, which its checkpoints are without; nothing where all parameters are trained."""
    if before and lora.rank:
        check_base(before[1]['base'], str(workdir))
        return {'base': before[1]['base']}
    if lora.rank:
        return {'base': describe_base(init_from)}
    if not before:
        refuse_adapters(init_from)
    return {}


def _tokenizer(config: Mapping[str, Any], workdir: Path, before: tuple[int, checkpoint.About] | None) -> Tokenizer:
    """The run's own, from its checkpoint; else that of the run it starts from; else the one that the config names; else a new one.

    Raises:
      UserError: `tokenizer.path` names another one than the run, or the run it starts from, was trained with.
    """
    section = dict(config['tokenizer'])
    path, closing = section.pop('path'), section['closing']
    if not before and is_pretrained(config['init_from']):
        if path:
            raise UserError(f'tokenizer.path={path}: a run from init_from={config["init_from"]} has the tokenizer of that model')
        return tokenizer_from_file(*open_pretrained(config['init_from']).tokenizer.file, closing)
    if not before and not config['init_from']:
        if path:
            return load_tokenizer(path, closing)
        boundaries = config['objective'] == 'lm'
        return build(train_tokenizer, 'tokenizer', section, texts=_training_texts(config), seed=config['seed'], boundaries=boundaries)
    directory, step = (workdir.absolute() / 'checkpoints', before[0]) if before else checkpoint.find(config['init_from'], 'init_from')
    tokenizer = checkpoint.load_tokenizer_of(directory, step).closed(closing)
    if path and load_tokenizer(path, closing).fingerprint != tokenizer.fingerprint:
        raise UserError(
            f'tokenizer.path={path} is not the tokenizer that {directory / str(step)} was trained with: put that one there, or none'
        )
    return tokenizer


class _Characters:
    """Stands for a tokenizer where text is cut into pieces to train one: four characters a token."""

    fingerprint = 'four characters'

    def count(self, texts: Sequence[str]) -> list[int]:
        return [-(-len(text) // 4) for text in texts]


def _training_texts(config: Mapping[str, Any]) -> Iterator[str]:
    """The texts of all sources' training pairs, source after source in turn, each in an order that mixes its files."""
    sources = list(_sources(config, 'train', _Characters())[0].values())
    orders = [np.random.default_rng(0).permutation(len(source)) for source in sources]
    for place in range(max(map(len, orders))):
        for source, order in zip(sources, orders, strict=True):
            if place < len(order):
                pair = source[int(order[place])]
                yield from filter(None, (pair.x, pair.y))


def check_lengths(objective: Objective, data: Data, shape: Shape, around: int = 2, what: str = 'the delimiters') -> None:
    """Raises UserError where texts do not fit a row or the model, or nothing of them beside what stands around them."""
    if objective.name == 'lm':
        if not 2 < data.row_length <= shape.max_length:
            raise UserError(f'data.row_length={data.row_length} must be over 2 and at most model.max_length={shape.max_length}')
        return
    for key in ('max_tokens_x', 'max_tokens_y'):
        value = getattr(data, key)
        if not around < value <= min(data.row_length, shape.max_length):
            raise UserError(
                f'data.{key}={value} must be over {around} ({what}) and at most data.row_length={data.row_length}'
                f' and model.max_length={shape.max_length}'
            )


def _check_data(before: Mapping[str, str], now: Mapping[str, str], workdir: Path) -> None:
    for name in now:
        if before.get(name) != now[name]:
            raise UserError(f'data.sources.{name} is not the data that {workdir} was trained on: put it back, or give another --workdir')


def _changes(before: checkpoint.About, config: Mapping[str, Any], workdir: Path) -> list[str]:
    """A line for each thing that is not as the run began with, and may change."""
    changes = check_resume(before['config'], config, workdir)
    return changes + ([f'code: {before["code"]} -> {code_version()}'] if before['code'] != code_version() else [])
