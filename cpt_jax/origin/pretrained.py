"""Pretrained models in the formats of transformers, sentence-transformers, PEFT, llama2.c and
llama.cpp (GGUF).
"""

import dataclasses
import functools
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import jax
import jax.numpy as jnp

from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.model.adapters.peft import AdaptedFiles, find_base_directory, is_adapter_directory
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.dense import Dense, load_dense, read_dense_configs
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.families.family import Family
from cpt_jax.model.families.load import TensorNames, load_encoder
from cpt_jax.model.families.pooler import (
    check_pooler,
    is_pooler_tensor,
    load_pooler,
    make_pooler_config,
)
from cpt_jax.model.formats.llama2c import find_llama2c_file
from cpt_jax.model.formats.safetensors_files import TensorFiles
from cpt_jax.model.formats.weight_files import has_weight_files
from cpt_jax.model.pooling import POOLINGS
from cpt_jax.origin.sentence_transformers import (
    MODULES,
    SentenceFiles,
    find_transformer,
    read_sentence_files,
    resolve_similarity,
)
from cpt_jax.origin.transformer_files import (
    Architecture,
    TransformerFiles,
    is_gguf_file,
    open_transformer,
    read_architecture,
)
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_files import read_json_file
from cpt_jax.storage.paths import as_path, is_remote
from cpt_jax.storage.remote import RemoteFiles
from cpt_jax.text.pretrained_tokenizer import PretrainedTokenizer
from cpt_jax.text.tokenizer import DELIMITERS, SIDES, Side, Tokenizer, parse_tokenizer_file
from cpt_jax.text.tokenizer_files import has_tokenizer, open_tokenizer, read_tokenizer_config

# Names of poolings in EncoderConfig, by the names in --pooling.
_BY_FLAG = {flag: name for name, pooling in POOLINGS.items() for flag in pooling.flags}
# The value of --pooling for BERT's trained pooler: a linear layer and tanh over the first state.
_POOLER_FLAG = 'pooler'
# Files of which one is in the directory of a model without a folder for its transformer.
_MODEL_FILES = ('config.json', 'adapter_config.json')
# Suffixes of the files of a model that are copied from a bucket. Model directories often hold the
# same weights in other formats too.
_FILE_SUFFIXES: tuple[str, ...] = ('.json', '.safetensors', '.model', '.txt', '.jinja', '.gguf')


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A directory of a pretrained model, with everything read except the weights.

    Attributes:
      directory: absolute path; of the copy in the cache if the model is in a bucket.
      reference: absolute path or URL that the model can be opened from again.
      config: content of config.json.
      family: the transformer family, such as BERT.
      files: the files of the weights, which are read tensor by tensor.
      shape: keyword arguments of EncoderConfig, including the pooling.
      rows: number of rows of the token table.
      tokenizer: tokenizer with the model's special tokens and prompts, for embedding and for
        runs in the model's own form. Other runs use `tokenizer.file` with delimiters.
      max_tokens: maximum number of tokens of a text, including special tokens.
      limits: the same by side; sentence-transformers may set one for a side.
      dense: folder -> config.json of each Dense module of sentence-transformers, in order.
      has_own_form: whether it has a pooling of its own: a sentence-transformers directory, or a
        bidirectional model.
      tokenizer_folder: directory of the tokenizer's files; None if there is none.
      has_pooler: whether the family's trained pooler follows the pooling (BERT).
      includes_prompt: whether the states of the prompt's tokens are pooled.
      similarity: how vectors are compared: 'cosine' or 'dot'.
      is_normalized: whether the model itself normalizes its vectors.
    """

    directory: Path
    reference: str
    config: Mapping[str, Any]
    family: Family
    files: TensorFiles
    shape: Mapping[str, Any]
    rows: int
    tokenizer: PretrainedTokenizer
    max_tokens: int
    limits: Mapping[Side, int]
    dense: Mapping[Path, Mapping[str, Any]]
    has_own_form: bool
    tokenizer_folder: Path | None = None
    has_pooler: bool = False
    includes_prompt: bool = True
    similarity: str = 'cosine'
    is_normalized: bool = False

    def find_begin_ids(self, rule: str) -> list[int] | None:
        """Returns the ids that begin every text of a causal language model; None otherwise.

        Args:
          rule: see `PretrainedTokenizer.find_begin_ids`.
        """
        if not self.shape.get('causal', True):
            return None
        return list(self.tokenizer.find_begin_ids(rule))

    @property
    def pretrained_config(self) -> Mapping[str, Any]:
        """The config.json, which a run stores so that its export has the same family."""
        return self.config

    @property
    def model_section_and_vocab_size(self) -> tuple[dict[str, Any], int]:
        """The `model` section of a run that starts from the model, and its vocabulary size.

        The vocabulary size includes the delimiters.
        """
        return dict(self.shape), self.load_tokenizer('own').vocab_size

    def load_tokenizer(self, closing: str) -> Tokenizer:
        """Returns the tokenizer with the paper's delimiters.

        Args:
          closing: the config key `tokenizer.closing`.
        """
        return parse_tokenizer_file(*self.tokenizer.file, closing)

    def load_encoder(
        self,
        config: EncoderConfig,
        mesh: jax.sharding.Mesh,
        dtype: jnp.dtype | None = None,
        fresh: Iterable[int] = (),
        lora: LoRA | None = None,
    ) -> Encoder:
        """Returns the encoder with its weights; see `cpt_jax.model.families.load.load_encoder`.

        Ids of the tokenizer beyond the token table get rows like new ids, so that texts can have
        them in training.
        """
        beyond = range(self.rows, min(self.tokenizer.vocab_size, config.vocab_size))
        fresh = [*fresh, *beyond]
        return load_encoder(self.family, self.files, config, mesh, dtype, fresh, lora)

    def load_dense(self, mesh: jax.sharding.Mesh) -> tuple[Dense, ...]:
        """Returns the Dense modules or the pooler with their weights, () if there are none."""
        width = self.shape.get('embedding_width') or self.shape['width']
        if self.has_pooler:
            return (load_pooler(self.files, self.family.prefixes, width, mesh),)
        return load_dense(self.dense, width, mesh)

    def find_warnings(self) -> list[str]:
        """Returns what a user should know about the vectors, one sentence each."""
        if self.tokenizer_folder is None:
            return []
        config = read_tokenizer_config(self.tokenizer_folder)
        if not config.get('add_eos_token') or self.tokenizer.closing_ids:
            return []
        if self.shape['pooling'] != 'eos':
            return []
        return [
            f'{self.tokenizer_folder}/tokenizer_config.json has add_eos_token, but '
            f'{self.tokenizer.source} puts no token after texts, and transformers 5 adds none '
            f'either: the vector is the state of the last word; if the model was trained with an '
            f'end token, add it to the post_processor of {self.tokenizer.source}'
        ]

    @property
    def passed_over(self) -> list[str]:
        """Names of the tensors in the files that no vector depends on."""
        config = EncoderConfig(vocab_size=self.rows, **self.shape)
        names = TensorNames(self.family, self.files, config).passed_over
        return [name for name in names if not (self.has_pooler and is_pooler_tensor(name))]


def is_pretrained(reference: str) -> bool:
    """Whether a model reference is the directory of a pretrained model or of a PEFT adapter.

    The directory of a run also has a config.json; it differs by its data.json.
    """
    directory = find_directory(reference)
    if not reference or RunDir(directory).data.is_file():
        return False
    if not any((directory / name).is_file() for name in _MODEL_FILES):
        directory = find_transformer(directory)
    return (
        (directory / 'config.json').is_file()
        or is_adapter_directory(directory)
        or find_llama2c_file(directory) is not None
        or is_gguf_file(directory)
    )


@functools.cache
def find_directory(reference: str) -> Path:
    """Returns the local directory or GGUF file of a model reference, which need not exist.

    A pretrained model in a bucket (gs://...) is copied into the cache, once in a process. Its
    directory or file is that of the copy.

    Raises:
      UserError: the bucket cannot be read, or the model does not fit on the disk.
    """
    if not is_remote(reference):
        return Path(reference)
    found = RemoteFiles.find(reference, 'model', must_exist=False)
    names = {name for name in found.files if '/' not in name}
    if found.kind == 'file' and reference.endswith('.gguf'):
        return found.copy()
    if not names & {*_MODEL_FILES, MODULES} or 'data.json' in names:
        return as_path(reference)
    with_safetensors = {
        PurePosixPath(name).parent for name in found.files if name.endswith('.safetensors')
    }
    return found.select(lambda name: _is_needed(PurePosixPath(name), with_safetensors)).copy()


def _is_needed(file: PurePosixPath, with_safetensors: Collection[PurePosixPath]) -> bool:
    """Whether a file of a model in a bucket is read.

    Args:
      file: path in the model's directory.
      with_safetensors: folders of the directory that have weights as safetensors.
    """
    if file.match('pytorch_model*.bin') or file.name == 'adapter_model.bin':
        return file.parent not in with_safetensors
    return file.name.endswith(_FILE_SUFFIXES)


def list_model_directories(reference: str) -> list[Path]:
    """Returns the directory or GGUF file of a pretrained model and, if it is an adapter, those of
    its base.
    """
    directory = find_directory(reference)
    transformer = find_transformer(directory)
    if not is_adapter_directory(transformer):
        return [directory]
    return [directory, *list_model_directories(str(find_base_directory(transformer)))]


def open_pretrained(reference: str, pooling: str = '', similarity: str = '') -> Pretrained:
    """Opens the directory or the GGUF file of a pretrained model, without reading its weights.

    A PEFT adapter is merged into its base when tensors are read. What its own directory configures
    (modules.json of sentence-transformers, tokenizer) replaces what the base configures.

    Args:
      reference: the directory or file.
      pooling: pooling for a directory that does not configure one: 'eos' or 'last' (the state of
        the last token), 'cls' (the state of the first token), 'pooler' (that state after BERT's
        trained pooler) or 'mean'. Default '' is the pooling of the family: 'mean' for BERT, 'last'
        for decoders.
      similarity: 'cosine', 'dot' or 'auto'; see `resolve_similarity`. Default '' is 'auto'.

    Raises:
      UserError: the directory is damaged or needs an unsupported feature, or `pooling` is set for a
        directory that configures one.
    """
    levels = [read_sentence_files(path.absolute()) for path in list_model_directories(reference)]
    *adapters, base = levels
    directory = levels[0].directory
    form = choose_form(levels)
    model = open_transformer(base.transformer)
    files = model.files
    for adapter in reversed(adapters):
        files = AdaptedFiles(files, model.family, adapter.transformer)
    folders = [level.transformer for level in levels]
    tokenizer_folder = next(filter(has_tokenizer, folders), base.transformer)
    tokenizer = _open_tokenizer(tokenizer_folder, model, form)
    default_pooling = model.shape.get('pooling', 'eos')
    shape = {**model.shape, 'pooling': _resolve_pooling(form, default_pooling, pooling)}
    width = shape.get('embedding_width') or shape['width']
    shape |= {'dense': read_dense_configs(form.dense, width)}
    has_pooler = pooling == _POOLER_FLAG
    if has_pooler:
        check_pooler(files, model.family.prefixes, '--pooling pooler')
        shape |= {'dense': (make_pooler_config(width),)}
    if form.max_tokens and form.max_tokens > shape['max_length']:
        _warn_about_limit(form.directory, form.max_tokens, shape['max_length'])
    tokenizer_limit = read_tokenizer_config(tokenizer_folder).get('model_max_length')
    max_tokens = _limit_tokens(form, model, tokenizer_limit)
    return Pretrained(
        directory=directory,
        reference=reference if is_remote(reference) else str(directory),
        config=model.config,
        family=model.family,
        files=files,
        shape=shape,
        rows=model.rows,
        tokenizer_folder=tokenizer_folder,
        tokenizer=tokenizer,
        max_tokens=max_tokens,
        limits=_limit_sides(form, max_tokens, shape['max_length']),
        dense=form.dense,
        has_pooler=has_pooler,
        has_own_form=_has_own_form(levels, form, shape),
        includes_prompt=form.includes_prompt,
        similarity=resolve_similarity(form, similarity),
        is_normalized=form.is_normalized,
    )


def choose_form(levels: Sequence[SentenceFiles]) -> SentenceFiles:
    """Returns the files that configure pooling, prompts and maximum length.

    Args:
      levels: files of a model and, if it is an adapter, of its base; see `list_model_directories`.
    """
    return next((level for level in levels if level.has_modules), levels[-1])


def _open_tokenizer(
    folder: Path, model: TransformerFiles, form: SentenceFiles
) -> PretrainedTokenizer:
    """Opens the tokenizer of a folder, or that of the GGUF file of a model."""
    if not is_gguf_file(folder):
        return open_tokenizer(folder, model.config, form.prompts, form.lower, model.rows)
    # Imported here because the gguf library takes 0.4 s.
    from cpt_jax.model.formats.gguf_file import GgufFile
    from cpt_jax.text.gguf_tokenizer import open_gguf_tokenizer

    assert isinstance(model.files, GgufFile)
    tokenizer = open_gguf_tokenizer(folder, model.files.metadata)
    if tokenizer.vocab_size > model.rows:
        raise UserError(
            f'{folder}: its tokenizer has {tokenizer.vocab_size:,} ids, and token_embd.weight '
            f'{model.rows:,} rows: convert the model again'
        )
    return tokenizer


def _limit_tokens(
    form: SentenceFiles, model: TransformerFiles | Architecture, of_tokenizer: float | None = None
) -> int:
    """Returns the maximum tokens of a text, as in sentence-transformers: its own limit replaces
    that of the tokenizer and that of the family.
    """
    limits: list[float | None] = [of_tokenizer, model.family.default_limit(model.config)]
    if form.max_tokens:
        limits = [form.max_tokens]
    return int(min(limit for limit in [*limits, model.shape['max_length']] if limit))


def _limit_sides(form: SentenceFiles, max_tokens: int, positions: int) -> dict[Side, int]:
    """Returns the maximum tokens of a text by side. As in sentence-transformers, the limit of a
    side replaces that of both.
    """
    return {side: min(form.side_limits.get(side, max_tokens), positions) for side in SIDES}


@functools.cache
def _warn_about_limit(directory: Path, limit: int, positions: int) -> None:
    """Warns, once per model, that it has fewer positions than its limit; other libraries fail on
    such texts, or read them with rotary positions that the model was not trained for.
    """
    logging.warning(
        '%s: texts are truncated to %d tokens, the positions of config.json, and not to '
        'max_seq_length=%d of sentence_bert_config.json',
        directory,
        positions,
        limit,
    )


@dataclasses.dataclass(frozen=True)
class PlannedModel:
    """A directory with config.json and without weights: enough for a plan.

    Attributes:
      shape, rows, max_tokens, limits, has_own_form: see `Pretrained`.
      pretrained_config: content of config.json.
    """

    shape: Mapping[str, Any]
    rows: int
    max_tokens: int
    limits: Mapping[Side, int]
    has_own_form: bool
    pretrained_config: Mapping[str, Any]
    bos_ids = None

    @property
    def model_section_and_vocab_size(self) -> tuple[dict[str, Any], int]:
        """The `model` section, and the vocabulary size with delimiters.

        The tokenizer may be missing too, so it counts as having an id for each row.
        """
        return dict(self.shape), self.rows + len(DELIMITERS)


def read_planned_model(reference: str) -> PlannedModel | None:
    """Returns a directory that has config.json but no weights; None if it is another directory.

    Raises:
      UserError: see `open_pretrained`.
    """
    directory = Path(reference).absolute()
    if is_remote(reference) or not is_pretrained(reference):
        return None
    transformer = find_transformer(directory)
    if not (transformer / 'config.json').is_file() or has_weight_files(transformer):
        return None
    sentence = read_sentence_files(directory)
    found = read_architecture(transformer)
    width = found.shape.get('embedding_width') or found.shape['width']
    pooling = _resolve_pooling(sentence, found.shape.get('pooling', 'eos'), '')
    shape = {**found.shape, 'pooling': pooling, 'dense': read_dense_configs(sentence.dense, width)}
    max_tokens = _limit_tokens(sentence, found)
    has_own_form = _has_own_form([sentence], sentence, shape)
    limits = _limit_sides(sentence, max_tokens, shape['max_length'])
    return PlannedModel(shape, found.rows, max_tokens, limits, has_own_form, found.config)


def _has_own_form(
    levels: Sequence[SentenceFiles], form: SentenceFiles, shape: Mapping[str, Any]
) -> bool:
    """Whether a model has a pooling of its own.

    An adapter that trained token ids has delimiters, which the form of its base lacks.
    """
    for level in levels[: levels.index(form)]:
        config = read_json_file(level.transformer / 'adapter_config.json')
        if config.get('trainable_token_indices'):
            return False
    return form.has_modules or not shape.get('causal', True)


def _resolve_pooling(sentence: SentenceFiles, default: str, chosen: str) -> str:
    """Returns the pooling as in EncoderConfig.

    Args:
      sentence: files of sentence-transformers; if there are modules, they configure the pooling.
      default: pooling of the family.
      chosen: value of --pooling, or ''.

    Raises:
      UserError: `chosen` is unknown, or set although there are modules.
    """
    flags = [*_BY_FLAG, _POOLER_FLAG]
    if chosen and chosen not in flags:
        raise UserError(f'--pooling {chosen}: choose one of {", ".join(flags)}')
    if sentence.has_modules and chosen:
        raise UserError(
            f'--pooling {chosen}: {sentence.directory}/{MODULES} configures the pooling of this '
            f'model: omit the flag'
        )
    if chosen == _POOLER_FLAG:
        return 'first'
    return sentence.pooling or _BY_FLAG.get(chosen, default)
