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
from cpt_jax.model.families.config_keys import CONFIG_KEYS
from cpt_jax.model.families.family import Family
from cpt_jax.model.families.known import find_family
from cpt_jax.model.families.load import TensorNames, load_encoder
from cpt_jax.model.formats.llama2c import LLAMA2C, Llama2cFile, find_llama2c_file
from cpt_jax.model.formats.safetensors_files import TensorFiles
from cpt_jax.model.formats.weight_files import open_weight_files
from cpt_jax.model.pooling import POOLINGS
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_checks import (
    FLAG,
    TEXT,
    allow_integers,
    allow_null,
    allow_object,
    check_values,
)
from cpt_jax.storage.json_files import read_json_file
from cpt_jax.storage.paths import as_path, is_remote
from cpt_jax.storage.remote import RemoteFiles
from cpt_jax.text.pretrained_tokenizer import (
    PretrainedTokenizer,
    open_tokenizer,
    read_tokenizer_config,
)
from cpt_jax.text.tokenizer import Side, Tokenizer, parse_tokenizer_file

# Names of poolings in EncoderConfig, by the names in sentence-transformers and in --pooling.
_BY_MODE = {pooling.mode: name for name, pooling in POOLINGS.items()}
_BY_FLAG = {flag: name for name, pooling in POOLINGS.items() for flag in pooling.flags}
# Keys of sentence-transformers before version 5.4, one of which is true -> name since then.
_LEGACY_FLAGS = {
    'pooling_mode_cls_token': 'cls',
    'pooling_mode_mean_tokens': 'mean',
    'pooling_mode_lasttoken': 'lasttoken',
    'pooling_mode_max_tokens': 'max',
    'pooling_mode_mean_sqrt_len_tokens': 'mean_sqrt_len_tokens',
    'pooling_mode_weightedmean_tokens': 'weightedmean',
}
# Suffixes of the files of a model that are copied from a bucket. Model directories often hold the
# same weights in other formats too.
_FILE_SUFFIXES: tuple[str, ...] = ('.json', '.safetensors', '.model', '.txt', '.jinja', '.gguf')
# Keys of each side in `prompts` of config_sentence_transformers.json; the first existing one is
# used. E5 calls documents passages.
_PROMPTS: dict[Side, tuple[str, ...]] = {'x': ('query',), 'y': ('document', 'passage')}
_PROMPT_KEYS = {
    'prompts': allow_null(allow_object(allow_null(TEXT))),
    'default_prompt_name': allow_null(TEXT),
}
SENTENCE_KEYS = {
    'max_seq_length': allow_null(allow_integers(1, 10_000_000)),
    'do_lower_case': FLAG,
}


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A directory or GGUF file of a pretrained model, with everything read except the weights.

    Attributes:
      directory: absolute path, of a GGUF file too; of the copy in the cache if the model is in a
        bucket.
      reference: absolute path or URL that the model can be opened from again.
      config: content of config.json, or its equivalent.
      family: the transformer family, such as BERT.
      files: the files of the weights, which are read tensor by tensor.
      shape: keyword arguments of EncoderConfig, including the pooling.
      rows: number of rows of the token table.
      tokenizer: tokenizer with the model's special tokens and prompts, for embedding and for
        runs in the model's own form. Other runs use `tokenizer.file` with delimiters.
      max_tokens: maximum number of tokens of a text, including special tokens.
      dense: folder -> config.json of each Dense module of sentence-transformers, in order.
      has_own_form: whether it has a pooling of its own: a sentence-transformers directory, or a
        bidirectional model.
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
    dense: Mapping[Path, Mapping[str, Any]]
    has_own_form: bool

    @property
    def bos_ids(self) -> list[int] | None:
        """The ids at the beginning of every text of a causal language model; None otherwise."""
        return list(self.tokenizer.bos_ids) if self.shape.get('causal', True) else None

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
        """Returns the encoder with its weights; see `cpt_jax.model.families.load.load_encoder`."""
        return load_encoder(self.family, self.files, config, mesh, dtype, fresh, lora)

    def load_dense(self, mesh: jax.sharding.Mesh) -> tuple[Dense, ...]:
        """Returns the Dense modules with their weights, () if there are none."""
        width = self.shape.get('embedding_width') or self.shape['width']
        return load_dense(self.dense, width, mesh)


def is_pretrained(reference: str) -> bool:
    """Whether a model reference is the directory of a pretrained model or of a PEFT adapter, or a
    GGUF file.

    The directory of a run also has a config.json; it differs by its data.json.
    """
    directory = find_directory(reference)
    if not reference or RunDir(directory).data.is_file():
        return False
    return (
        (directory / 'config.json').is_file()
        or is_adapter_directory(directory)
        or find_llama2c_file(directory) is not None
        or is_gguf_file(directory)
    )


def is_gguf_file(path: Path) -> bool:
    """Whether a path is a file whose name ends in .gguf."""
    return path.suffix == '.gguf' and path.is_file()


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
    if not names & {'config.json', 'adapter_config.json'} or 'data.json' in names:
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
    if file.match('pytorch_model*.bin'):
        return file.parent not in with_safetensors
    return file.name.endswith(_FILE_SUFFIXES)


def list_model_directories(reference: str) -> list[Path]:
    """Returns the directory or GGUF file of a pretrained model and, if it is an adapter, those of
    its base.
    """
    directory = find_directory(reference)
    if not is_adapter_directory(directory):
        return [directory]
    return [directory, *list_model_directories(str(find_base_directory(directory)))]


def open_pretrained(reference: str, pooling: str = '') -> Pretrained:
    """Opens the directory or the GGUF file of a pretrained model, without reading its weights.

    A PEFT adapter is merged into its base when tensors are read.

    Args:
      reference: the directory or file.
      pooling: pooling for a directory that does not configure one: 'eos' or 'last' (the state of
        the last token), 'cls' (the state of the first token) or 'mean'. Default '' is the pooling
        of the family: 'mean' for BERT, 'last' for decoders.

    Raises:
      UserError: the directory is damaged or needs an unsupported feature, or `pooling` is set for a
        directory that configures one.
    """
    directory = find_directory(reference).absolute()
    if is_gguf_file(directory):
        return _open_gguf(directory, reference if is_remote(reference) else str(directory), pooling)
    if is_adapter_directory(directory):
        base = open_pretrained(str(find_base_directory(directory)), pooling)
        # An adapter that trained token ids has delimiters, which the base's form lacks.
        adapter_config = read_json_file(directory / 'adapter_config.json')
        has_delimiters = bool(adapter_config.get('trainable_token_indices'))
        return dataclasses.replace(
            base,
            directory=directory,
            reference=reference if is_remote(reference) else str(directory),
            files=AdaptedFiles(base.files, base.family, directory),
            has_own_form=base.has_own_form and not has_delimiters,
        )
    path = None if (directory / 'config.json').is_file() else find_llama2c_file(directory)
    legacy = Llama2cFile(path) if path else None
    config = legacy.config if legacy else read_json_file(directory / 'config.json')
    family = LLAMA2C
    if not legacy:
        check_values(directory / 'config.json', config, CONFIG_KEYS)
        family = _find_family(directory, config)
    shape = _read_shape(directory, family, config)
    rows = config['vocab_size']
    files = legacy or open_weight_files(directory)
    encoder_config = _make_encoder_config(directory, shape, rows)
    modules = _read_modules(directory)
    default_pooling = shape.get('pooling', 'eos')
    shape |= {'pooling': _resolve_pooling(directory, modules, default_pooling, pooling)}
    dense = _read_dense_configs(directory, modules)
    shape |= {'dense': read_dense_configs(dense, shape.get('embedding_width') or shape['width'])}
    shape |= {'tied': bool(config.get('tie_word_embeddings', family.tied))}
    sentence = read_json_file(directory / 'sentence_bert_config.json', optional=True)
    check_values(directory / 'sentence_bert_config.json', sentence, SENTENCE_KEYS)
    tokenizer = open_tokenizer(
        directory, config, _read_prompts(directory), bool(sentence.get('do_lower_case', False))
    )
    if tokenizer.vocab_size > rows:
        raise UserError(
            f'{directory}: {tokenizer.source} has {tokenizer.vocab_size} ids, and the embedding '
            f'{rows} rows: use the tokenizer of this model'
        )
    _check_table_rows(directory, family, files, encoder_config)
    tokenizer_config = read_tokenizer_config(directory)
    # As in sentence-transformers, its own limit replaces the tokenizer's, even by a larger one.
    own_limit = sentence.get('max_seq_length')
    if own_limit and own_limit > shape['max_length']:
        _warn_about_limit(directory, own_limit, shape['max_length'])
    limit = own_limit or tokenizer_config.get('model_max_length') or shape['max_length']
    max_tokens = int(min(limit, shape['max_length']))
    return Pretrained(
        directory,
        reference if is_remote(reference) else str(directory),
        config,
        family,
        files,
        shape,
        rows,
        tokenizer,
        max_tokens,
        dense,
        has_own_form=bool(modules) or not shape.get('causal', True),
    )


def _open_gguf(path: Path, reference: str, pooling: str) -> Pretrained:
    """Opens a GGUF file; see `open_pretrained`.

    Args:
      path: the file.
      reference: absolute path or URL that it can be opened from again.
      pooling: see `open_pretrained`.
    """
    # Imported here because the gguf library takes 0.4 s.
    from cpt_jax.model.formats.gguf_file import GgufFile
    from cpt_jax.text.gguf_tokenizer import open_gguf_tokenizer

    files = GgufFile(path)
    config = files.config
    family = find_family(config)
    rows = config['vocab_size']
    try:
        shape = family.shape(config)
        TensorNames(family, files, EncoderConfig(vocab_size=rows, **shape))
    except UserError as error:
        raise UserError(f'{path}: {error}') from None
    shape |= {
        'pooling': _resolve_pooling(path, [], shape.get('pooling', 'eos'), pooling),
        'dense': (),
        'tied': config['tie_word_embeddings'],
    }
    tokenizer = open_gguf_tokenizer(path, files.metadata)
    if tokenizer.vocab_size > rows:
        raise UserError(
            f'{path}: its tokenizer has {tokenizer.vocab_size:,} ids, and token_embd.weight '
            f'{rows:,} rows: convert the model again'
        )
    return Pretrained(
        path,
        reference,
        config,
        family,
        files,
        shape,
        rows,
        tokenizer,
        shape['max_length'],
        dense={},
        has_own_form=False,
    )


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


def _find_family(directory: Path, config: Mapping[str, Any]) -> Family:
    try:
        return find_family(config)
    except UserError as error:
        raise UserError(f'{directory}/{error}') from None


def _read_shape(directory: Path, family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keyword arguments of EncoderConfig that config.json describes, without those of
    other files.

    Raises:
      UserError: a key is missing, or its value is not supported.
    """
    path = directory / 'config.json'
    try:
        shape = family.shape(config)
        config['vocab_size']  # read by the caller
    except KeyError as error:
        raise UserError(f'{path}: has no {error.args[0]!r}') from None
    except UserError as error:
        raise UserError(f'{directory}/{error}') from None
    # Values within objects, such as rope_parameters, which CONFIG_KEYS does not list.
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f'{path}: a value is not of the expected kind ({error})') from None
    # transformers writes the first key, other libraries the second.
    if config.get('is_causal') is False or config.get('use_bidirectional_attention'):
        shape |= {'causal': False}
    return shape


def _make_encoder_config(directory: Path, shape: Mapping[str, Any], rows: int) -> EncoderConfig:
    """Returns the architecture. Raises UserError if config.json describes no possible model."""
    path = directory / 'config.json'
    try:
        return EncoderConfig(vocab_size=rows, **shape)
    except UserError as error:
        raise UserError(f'{path}: {error}') from None
    except TypeError as error:  # a null that the family has no default for
        raise UserError(f'{path}: a value is not of the expected kind ({error})') from None


def _check_table_rows(
    directory: Path, family: Family, files: TensorFiles, config: EncoderConfig
) -> None:
    """Raises UserError if config.json describes another size of the token table than the files
    have, before a table of that size is allocated.
    """
    (table,) = (
        tensor.name for tensor in family.outer(config) if 'token_embedding' in tensor.parameters
    )
    names = [prefix + table for prefix in family.prefixes if prefix + table in files.names]
    found = [files.read_shape(name)[0] for name in names]
    if found and found[0] != config.vocab_size:
        raise UserError(
            f'{directory}/config.json: vocab_size={config.vocab_size:,}, but '
            f'{files.describe_location(names[0])} has {found[0]:,} rows: the files belong to '
            f'different models'
        )


def _read_modules(directory: Path) -> list[tuple[str, Path]]:
    """Returns (kind, folder) of each module in sentence-transformers' modules.json.

    Returns [] if there is no modules.json.

    Raises:
      UserError: modules.json is invalid, has an unsupported kind, or has no pooling.
    """
    path = directory / 'modules.json'
    if not path.is_file():
        return []
    given = read_json_file(path, kind=list)
    if not all(_is_module(module) for module in given):
        raise UserError(f'{path}: not a list of modules, each with a type and a path')
    modules = [(module['type'].rpartition('.')[2], directory / module['path']) for module in given]
    unknown = dict(modules).keys() - {'Transformer', 'Pooling', 'Dense', 'Normalize'}
    if unknown or 'Pooling' not in dict(modules):
        raise UserError(
            f'{path}: expected a transformer, a pooling and a normalisation, not '
            f'{", ".join(dict(modules))}'
        )
    return modules


def _is_module(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(key), str) for key in ('type', 'path')
    )


def _resolve_pooling(
    directory: Path, modules: Sequence[tuple[str, Path]], default: str, chosen: str
) -> str:
    """Returns the pooling as in EncoderConfig.

    Args:
      directory: directory of the model, for messages.
      modules: modules of sentence-transformers; if there are any, they configure the pooling.
      default: pooling of the family.
      chosen: value of --pooling, or ''.

    Raises:
      UserError: `chosen` is unknown, or set although there are modules; or the pooling of the
        modules is not supported.
    """
    if chosen and chosen not in _BY_FLAG:
        raise UserError(f'--pooling {chosen}: choose one of {", ".join(_BY_FLAG)}')
    if not modules:
        return _BY_FLAG[chosen] if chosen else default
    if chosen:
        raise UserError(
            f'--pooling {chosen}: {directory}/modules.json configures the pooling of this model: '
            f'omit the flag'
        )
    path = dict(modules)['Pooling'] / 'config.json'
    pooling = read_json_file(path)
    modes = [mode for flag, mode in _LEGACY_FLAGS.items() if pooling.get(flag)]
    if not modes:
        modes = [pooling.get('pooling_mode')]
    if len(modes) > 1 or modes[0] not in [*_BY_MODE]:
        raise UserError(
            f'{path}: pooling {modes} is not supported; supported is one of {", ".join(_BY_MODE)}'
        )
    return _BY_MODE[modes[0]]


def _read_dense_configs(
    directory: Path, modules: Sequence[tuple[str, Path]]
) -> dict[Path, Mapping[str, Any]]:
    """Returns folder -> config.json of the Dense modules between pooling and normalisation.

    Raises:
      UserError: a Dense module is in another place.
    """
    kinds = [kind for kind, _ in modules]
    if 'Dense' in kinds and (kinds[:2] != ['Transformer', 'Pooling'] or 'Normalize' in kinds[:-1]):
        raise UserError(
            f'{directory}/modules.json: expected a transformer, a pooling and a normalisation, not '
            f'{", ".join(kinds)}; Dense modules may come before the normalisation'
        )
    return {
        folder: read_json_file(folder / 'config.json')
        for kind, folder in modules
        if kind == 'Dense'
    }


def _read_prompts(directory: Path) -> dict[Side, str]:
    """Returns the prompt before the texts of each side, from sentence-transformers' config."""
    path = directory / 'config_sentence_transformers.json'
    given = read_json_file(path, optional=True)
    check_values(path, given, _PROMPT_KEYS)
    prompts = given.get('prompts') or {}
    default = prompts.get(given.get('default_prompt_name') or '', '')
    return {
        side: next((prompts[name] for name in names if prompts.get(name) is not None), default)
        for side, names in _PROMPTS.items()
    }
