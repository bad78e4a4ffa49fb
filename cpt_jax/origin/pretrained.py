"""A model that others trained: a directory with config.json, *.safetensors and a tokenizer, or of
sentence-transformers, or llama2.c's.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.model.adapters.peft import AdaptedFiles, base_of, is_adapter
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.families.family import Family
from cpt_jax.model.families.known import family_of
from cpt_jax.model.families.load import load_encoder
from cpt_jax.model.formats.llama2c import LLAMA2C, Llama2cFile, llama2c_file
from cpt_jax.model.formats.safetensors_files import Files
from cpt_jax.model.pooling import POOLINGS
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_files import read_json_file
from cpt_jax.text.pretrained_tokenizer import OwnTokenizer, open_tokenizer
from cpt_jax.text.tokenizer import Side, Tokenizer, tokenizer_from_file

# The poolings by sentence-transformers' names, and by those of --pooling.
_BY_MODE = {pooling.mode: name for name, pooling in POOLINGS.items()}
_BY_FLAG = {flag: name for name, pooling in POOLINGS.items() for flag in pooling.flags}
# How sentence-transformers wrote a pooling before its version 5.4: one of these is true.
_LEGACY_FLAGS = {
    'pooling_mode_cls_token': 'cls',
    'pooling_mode_mean_tokens': 'mean',
    'pooling_mode_lasttoken': 'lasttoken',
    'pooling_mode_max_tokens': 'max',
    'pooling_mode_mean_sqrt_len_tokens': 'mean_sqrt_len_tokens',
    'pooling_mode_weightedmean_tokens': 'weightedmean',
}
# In `prompts` of config_sentence_transformers.json, the first that is there; `passage` is E5's
# word.
_PROMPTS: dict[Side, tuple[str, ...]] = {'x': ('query',), 'y': ('document', 'passage')}


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A pretrained model's directory, read but for its weights.

    Attributes:
      directory: its absolute path.
      config: content of config.json.
      family: its kind of transformer.
      files: its weights, tensor by tensor.
      shape: keyword arguments of EncoderConfig, pooling among them.
      rows: number of rows of its token table.
      tokenizer: with its special tokens and prompts, for embedding; a run that starts from it has
        `tokenizer.file` between delimiters.
      max_tokens: of a text, special tokens included.
      dense: the config.json of each Dense module of sentence-transformers, by its folder, in turn.
    """

    directory: Path
    config: Mapping[str, Any]
    family: Family
    files: Files
    shape: Mapping[str, Any]
    rows: int
    tokenizer: OwnTokenizer
    max_tokens: int
    dense: Mapping[Path, Mapping[str, Any]]

    @property
    def bos_ids(self) -> list[int] | None:
        """The ids that begin every text of a causal language model; None for other models."""
        return list(self.tokenizer.begin) if self.shape.get('causal', True) else None

    @property
    def pretrained_config(self) -> Mapping[str, Any]:
        """config.json, which a run keeps: its export is of the same family."""
        return self.config

    @property
    def architecture(self) -> tuple[dict[str, Any], int]:
        """The `model` section of a run that starts from it, and its number of ids, the delimiters
        included.
        """
        return dict(self.shape), self.load_tokenizer('own').vocab_size

    def load_tokenizer(self, closing: str) -> Tokenizer:
        """Returns its tokenizer with the paper's delimiters, closed as `tokenizer.closing` says."""
        return tokenizer_from_file(*self.tokenizer.file, closing)

    def load_encoder(
        self,
        config: EncoderConfig,
        mesh: jax.sharding.Mesh,
        dtype: jnp.dtype | None = None,
        fresh: Iterable[int] = (),
        lora: LoRA | None = None,
    ) -> Encoder:
        """Returns its encoder; see `model/families/load.py`."""
        return load_encoder(self.family, self.files, config, mesh, dtype, fresh, lora)


def is_pretrained(reference: str) -> bool:
    """Whether a model reference is such a directory, or one of an adapter of PEFT; a run has a
    config.json too, and data.json beside it.
    """
    directory = Path(reference)
    if not reference or RunDir(directory).data.is_file():
        return False
    return (
        (directory / 'config.json').is_file()
        or is_adapter(directory)
        or llama2c_file(directory) is not None
    )


def directories_of(reference: str) -> list[Path]:
    """The directory of a pretrained model; of an adapter its own, and that of its base."""
    directory = Path(reference)
    return [directory, *(directories_of(str(base_of(directory))) if is_adapter(directory) else [])]


def open_pretrained(reference: str, pooling: str = '') -> Pretrained:
    """Reads all of a directory but the weights. An adapter of PEFT is merged into its base as
    tensors are read.

    Args:
      reference: the directory.
      pooling: 'eos' or 'last' (the state at a text's last token), 'mean' or 'cls' (at its first)
        for a directory that says none; '': its family's: 'mean' for BERT, 'last' for decoders.

    Raises:
      UserError: it is damaged, or needs something that we do not have; or it says its pooling, and
        another is asked for.
    """
    directory = Path(reference).absolute()
    if is_adapter(directory):
        base = open_pretrained(str(base_of(directory)), pooling)
        return dataclasses.replace(
            base, directory=directory, files=AdaptedFiles(base.files, base.family, directory)
        )
    path = None if (directory / 'config.json').is_file() else llama2c_file(directory)
    legacy = Llama2cFile(path) if path else None
    config = legacy.config if legacy else read_json_file(directory / 'config.json')
    try:
        family = LLAMA2C if legacy else family_of(config)
        shape = family.shape(config)
        rows = int(config['vocab_size'])
    except KeyError as error:
        raise UserError(f'{directory}/config.json: has no {error.args[0]!r}') from None
    except UserError as error:
        raise UserError(f'{directory}/{error}') from None
    # The key of transformers, and that of other readers.
    if config.get('is_causal') is False or config.get('use_bidirectional_attention'):
        shape |= {'causal': False}
    modules = _modules(directory)
    shape |= {'pooling': _pooling(directory, modules, shape.get('pooling', 'eos'), pooling)}
    shape |= {'tied': bool(config.get('tie_word_embeddings', family.tied))}
    sentence = read_json_file(directory / 'sentence_bert_config.json', optional=True)
    tokenizer = open_tokenizer(
        directory, config, _prompts(directory), bool(sentence.get('do_lower_case', False))
    )
    if tokenizer.vocab_size > rows:
        raise UserError(
            f'{directory}: {tokenizer.source} has {tokenizer.vocab_size} ids, and the embedding '
            f'{rows} rows'
        )
    own = read_json_file(directory / 'tokenizer_config.json', optional=True)
    limits = [sentence.get('max_seq_length'), own.get('model_max_length'), shape['max_length']]
    longest = int(min(limit for limit in limits if limit))
    return Pretrained(
        directory,
        config,
        family,
        legacy or Files(directory),
        shape,
        rows,
        tokenizer,
        longest,
        _dense(directory, modules),
    )


def _modules(directory: Path) -> list[tuple[str, Path]]:
    """The kinds and folders of the modules that sentence-transformers lists in modules.json; none
    without one.
    """
    path = directory / 'modules.json'
    if not path.is_file():
        return []
    try:
        modules = [
            (str(module['type']).rpartition('.')[2], directory / module['path'])
            for module in read_json_file(path, kind=list)
        ]
    except (KeyError, TypeError):
        raise UserError(f'{path}: not a list of modules, each with a type and a path') from None
    other = dict(modules).keys() - {'Transformer', 'Pooling', 'Dense', 'Normalize'}
    if other or 'Pooling' not in dict(modules):
        raise UserError(
            f'{path}: a transformer, a pooling and a normalisation are expected, not '
            f'{", ".join(dict(modules))}'
        )
    return modules


def _pooling(
    directory: Path, modules: Sequence[tuple[str, Path]], default: str, chosen: str
) -> str:
    """What the modules say; where there are none what is chosen, or else `default`."""
    if chosen and chosen not in _BY_FLAG:
        raise UserError(f'--pooling {chosen}: choose one of {", ".join(_BY_FLAG)}')
    if not modules:
        return _BY_FLAG[chosen] if chosen else default
    if chosen:
        raise UserError(
            f'--pooling {chosen}: {directory}/modules.json says the pooling of this model; leave '
            f'the flag out'
        )
    path = dict(modules)['Pooling'] / 'config.json'
    pooling = read_json_file(path)
    modes = [mode for flag, mode in _LEGACY_FLAGS.items() if pooling.get(flag)] or [
        pooling.get('pooling_mode')
    ]
    if len(modes) > 1 or modes[0] not in _BY_MODE:
        raise UserError(
            f'{path}: pooling {modes} is not supported; known are one of {", ".join(_BY_MODE)}'
        )
    return _BY_MODE[modes[0]]


def _dense(directory: Path, modules: Sequence[tuple[str, Path]]) -> dict[Path, Mapping[str, Any]]:
    """Of the Dense modules between pooling and normalisation."""
    kinds = [kind for kind, _ in modules]
    if 'Dense' in kinds and (kinds[:2] != ['Transformer', 'Pooling'] or 'Normalize' in kinds[:-1]):
        raise UserError(
            f'{directory}/modules.json: a transformer, a pooling and a normalisation are expected, '
            f'not {", ".join(kinds)}; Dense modules may stand before the last'
        )
    return {
        folder: read_json_file(folder / 'config.json')
        for kind, folder in modules
        if kind == 'Dense'
    }


def _prompts(directory: Path) -> dict[Side, str]:
    """What stands before the texts of each side, where sentence-transformers wrote any."""
    given = read_json_file(directory / 'config_sentence_transformers.json', optional=True)
    prompts = given.get('prompts') or {}
    default = prompts.get(given.get('default_prompt_name') or '', '')
    return {
        side: next((prompts[name] for name in names if prompts.get(name) is not None), default)
        for side, names in _PROMPTS.items()
    }
