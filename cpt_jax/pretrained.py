"""A model that others trained: a directory with config.json, *.safetensors and tokenizer.json, plain or of sentence-transformers."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from cpt_jax.errors import UserError
from cpt_jax.model.families.family import Family
from cpt_jax.model.families.files import Files
from cpt_jax.model.families.known import family_of
from cpt_jax.tokenizer import Side

# sentence-transformers' names of the poolings that we have: the flag of each before its version 5.4, its name since.
_POOLINGS = {'cls': 'first', 'mean': 'mean', 'lasttoken': 'eos'}
_LEGACY_FLAGS = {
    'pooling_mode_cls_token': 'cls',
    'pooling_mode_mean_tokens': 'mean',
    'pooling_mode_lasttoken': 'lasttoken',
    'pooling_mode_max_tokens': 'max',
    'pooling_mode_mean_sqrt_len_tokens': 'mean_sqrt_len_tokens',
    'pooling_mode_weightedmean_tokens': 'weightedmean',
}
# In `prompts` of config_sentence_transformers.json, the first that is there; `passage` is E5's word.
_PROMPTS: dict[Side, tuple[str, ...]] = {'x': ('query',), 'y': ('document', 'passage')}


class OwnTokenizer:
    """A pretrained model's own tokenizer: its special tokens around each text, its prompt before it.

    Attributes:
      vocab_size: number of ids.
      prompts: what stands before the texts of each side.
    """

    def __init__(self, data: bytes, prompts: Mapping[Side, str], lower: bool = False):
        self._data, self._lower, self.prompts = data, lower, dict(prompts)
        self._tokenizer = tokenizers.Tokenizer.from_buffer(data)
        self._tokenizer.no_padding()
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digits that differ when any text could get other ids."""
        return hashlib.blake2b(self._data + repr((self.prompts, self._lower)).encode(), digest_size=16).hexdigest()

    def describe(self) -> dict[str, Any]:
        """What stands around a text, for results."""
        return {'prompts': self.prompts, 'special_tokens': "the tokenizer's own"}

    def encode(self, texts: Sequence[str], side: Side, max_tokens: int) -> list[np.ndarray]:
        """Ids of each text with its prompt, cut so that the special tokens fit: at most `max_tokens`, int32."""
        self._tokenizer.enable_truncation(max_tokens)
        prompted = [self.prompts[side] + (text.lower() if self._lower else text) for text in texts]
        return [np.array(e.ids, np.int32) for e in self._tokenizer.encode_batch_fast(prompted)]


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """What a directory holds.

    Attributes:
      config: of config.json.
      family: its kind of transformer.
      shape: arguments of Shape, its pooling among them.
      rows: of its vocabulary's table.
      max_tokens: of a text, special tokens included.
    """

    directory: Path
    config: Mapping[str, Any]
    family: Family
    files: Files
    shape: Mapping[str, Any]
    rows: int
    tokenizer: OwnTokenizer
    max_tokens: int


def is_pretrained(reference: str) -> bool:
    """Whether a model reference is such a directory; a run has a config.json too, and data.json beside it."""
    directory = Path(reference)
    return bool(reference) and (directory / 'config.json').is_file() and not (directory / 'data.json').is_file()


def open_pretrained(reference: str) -> Pretrained:
    """Reads all of a directory but the weights.

    Raises:
      UserError: it is damaged, or needs something that we do not have.
    """
    directory = Path(reference).absolute()
    config = _read(directory / 'config.json')
    try:
        family = family_of(config)
        shape = family.shape(config)
    except KeyError as error:
        raise UserError(f'{directory}/config.json: has no {error.args[0]!r}') from None
    except UserError as error:
        raise UserError(f'{directory}/{error}') from None
    if config.get('is_causal') is False or config.get('use_bidirectional_attention'):  # transformers' key, and that of other readers
        shape |= {'causal': False}
    shape |= {'pooling': _pooling(directory, shape.get('pooling', 'eos'))}
    rows, sentence = int(config['vocab_size']), _read(directory / 'sentence_bert_config.json', optional=True)
    tokenizer = _tokenizer(directory, bool(sentence.get('do_lower_case', False)))
    if tokenizer.vocab_size > rows:
        raise UserError(f'{directory}: tokenizer.json has {tokenizer.vocab_size} ids, and the embedding {rows} rows')
    own = _read(directory / 'tokenizer_config.json', optional=True)
    limits = [sentence.get('max_seq_length'), own.get('model_max_length'), shape['max_length']]
    return Pretrained(directory, config, family, Files(directory), shape, rows, tokenizer, int(min(limit for limit in limits if limit)))


def _pooling(directory: Path, default: str) -> str:
    """What modules.json says; `default` in a directory without one."""
    if not (directory / 'modules.json').is_file():
        return default
    modules = {module['type'].rpartition('.')[2]: module for module in _read(directory / 'modules.json')}
    other = modules.keys() - {'Transformer', 'Pooling', 'Normalize'}
    if other or 'Pooling' not in modules:
        raise UserError(f'{directory}/modules.json: a transformer, a pooling and a normalisation are expected, not {", ".join(modules)}')
    path = directory / modules['Pooling']['path'] / 'config.json'
    pooling = _read(path)
    modes = [mode for flag, mode in _LEGACY_FLAGS.items() if pooling.get(flag)] or [pooling.get('pooling_mode')]
    if len(modes) > 1 or modes[0] not in _POOLINGS:
        raise UserError(f'{path}: pooling {modes} is not supported; known are one of {", ".join(_POOLINGS)}')
    return _POOLINGS[modes[0]]


def _tokenizer(directory: Path, lower: bool) -> OwnTokenizer:
    path = directory / 'tokenizer.json'
    if not path.is_file():
        raise UserError(f'{directory}: holds no tokenizer.json; `AutoTokenizer.from_pretrained(...).save_pretrained(...)` writes one')
    given = _read(directory / 'config_sentence_transformers.json', optional=True)
    prompts = given.get('prompts') or {}
    default = prompts.get(given.get('default_prompt_name') or '', '')
    by_side = {side: next((prompts[name] for name in names if prompts.get(name) is not None), default) for side, names in _PROMPTS.items()}
    try:
        return OwnTokenizer(path.read_bytes(), by_side, lower)
    except Exception as error:  # the library raises bare exceptions
        raise UserError(f'{path}: cannot be read: {str(error).splitlines()[0]}') from None


def _read(path: Path, optional: bool = False) -> Any:
    """The content of a JSON file; {} of one that is not there and need not be."""
    if optional and not path.is_file():
        return {}
    try:
        return json.loads(path.read_text('utf-8'))
    except FileNotFoundError:
        raise UserError(f'{path}: is missing') from None
    except ValueError as error:
        raise UserError(f'{path}: not JSON ({error})') from None
