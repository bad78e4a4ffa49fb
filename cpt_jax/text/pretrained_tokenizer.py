"""The tokenizers of pretrained directories: four file formats with one interface, each with the
special tokens of its directory.

Ids equal those of transformers 5.23. With a sentencepiece model they equal those of sentencepiece
itself, with which LLaMA was trained. transformers instead rebuilds a BPE from the tokens in the
order of their ids, not of their scores, which differs where spaces meet:
  - LLaMA's tokens for several spaces have the lowest scores. sentencepiece encodes 'a  The' as
    a, space, space-The; transformers as a, two spaces, The.
  - sentencepiece puts one more space before every text, also before a text that begins with a space
    (with `legacy`, also before the text that follows a special token).
If tokenizer_config.json has no `add_bos_token`, BOS is prepended, as the documentation of
LlamaTokenizer specifies; its code does not prepend it.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.atomic_write import write_atomically
from cpt_jax.storage.json_checks import (
    FLAG,
    OBJECT,
    TEXT,
    Allowed,
    allow_null,
    allow_numbers,
    allow_object,
    check_values,
)
from cpt_jax.storage.json_files import read_json_file
from cpt_jax.storage.paths import as_path
from cpt_jax.text.byte_level import build_byte_level_json
from cpt_jax.text.hugging_face_json import HuggingFaceJson
from cpt_jax.text.sentencepiece_model import convert_llama2c_tokenizer, read_sentencepiece
from cpt_jax.text.tokenizer import SIDES, Side

_TOKEN = allow_null(
    Allowed(
        'a text, or an object with the key content',
        lambda value: (
            isinstance(value, str)
            or (isinstance(value, dict) and isinstance(value.get('content'), str))
        ),
    )
)
TOKENIZER_KEYS = {
    'model_max_length': allow_null(allow_numbers(least=1)),
    'tokenizer_class': allow_null(TEXT),
    'add_prefix_space': allow_null(FLAG),
    'add_bos_token': allow_null(FLAG),
    'add_eos_token': allow_null(FLAG),
    'legacy': allow_null(FLAG),
    'added_tokens_decoder': allow_object(OBJECT),
    **dict.fromkeys([f'{role}_token' for role in ('bos', 'eos', 'unk', 'pad')], _TOKEN),
}


class _Model(Protocol):
    """A tokenizer with its special tokens, in one of the file formats.

    Attributes:
      file: (name, content) of a file with the same tokenizer without special tokens, which
        `cpt_jax.text.tokenizer` can read.
      identity: bytes that differ if any text could get other ids.
      vocab_size: number of ids.
    """

    file: tuple[str, bytes]
    identity: bytes
    vocab_size: int

    @property
    def before(self) -> Sequence[int]:
        """Ids of the special tokens before each text."""

    def encode(self, texts: Sequence[str], max_tokens: int | None) -> list[list[int]]:
        """Returns the ids of each text with special tokens, truncated if there is a limit."""

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text without special tokens around it."""

    def decode(self, ids: Sequence[int]) -> str: ...


class PretrainedTokenizer:
    """The tokenizer of a pretrained model, with its special tokens and prompts.

    Attributes:
      source: name of the tokenizer's file.
      vocab_size: number of ids.
      added_ids: ids that the pretrained model lacks: none.
      prompts: string put before each text, by side.
      bos_ids: ids that begin a text for a language model, at most one: the special tokens that the
        tokenizer itself puts before texts, or else the model's BOS.
    """

    added_ids: tuple[int, ...] = ()

    def __init__(
        self,
        source: str,
        model: _Model,
        prompts: Mapping[Side, str],
        lower: bool,
        end: int,
        bos_ids: Sequence[int] = (),
        padding: str = '',
        rows: int = 0,
    ):
        """Wraps a model.

        Args:
          source: name of the tokenizer's file.
          model: tokenizer with its special tokens.
          prompts: string put before each text, by side.
          lower: whether texts are lowercased.
          end: id that replaces a text without any token, because pooling needs at least one state.
          bos_ids: BOS from config.json, used if the tokenizer itself puts nothing before texts.
          padding: padding token from tokenizer_config.json; '' if there is none.
          rows: number of rows of the token table; 0: one for each id. A text with an id beyond
            them is refused.
        """
        self._model = model
        self._end = end
        self._padding = padding
        self._lower = lower
        self._rows = rows
        self._ids_if_empty = [] if model.encode([''], None)[0] else [end]
        self.bos_ids = tuple(model.before or bos_ids)
        self.source = source
        self.prompts = dict(prompts)
        self.vocab_size = model.vocab_size

    @property
    def file(self) -> tuple[str, bytes]:
        """(name, content) of a file for `parse_tokenizer_file`: the same vocabulary without special
        tokens and prompts.
        """
        return self._model.file

    def check_can_be_stored(self) -> None:
        """Raises UserError if `file` lacks the special tokens, because the directory has no
        tokenizer.json.
        """
        if not isinstance(self._model, HuggingFaceJson):
            raise UserError(
                f'{self.source}: a run keeps the special tokens of a tokenizer.json only; write '
                f'one with `AutoTokenizer.from_pretrained(...).save_pretrained(...)`, or set '
                f'--config.tokenizer.delimiters=paper'
            )

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that are not in `file`, as plain values for `restore_tokenizer`."""
        self.check_can_be_stored()
        settings = {
            'source': self.source,
            'prompts': self.prompts,
            'lower': self._lower,
            'end': self._end,
            'bos_ids': list(self.bos_ids),
            'padding': self._padding,
        }
        return settings | ({'rows': self._rows} if self._has_ids_beyond_rows else {})

    def with_prompts(self, prompts: Mapping[Side, str]) -> 'PretrainedTokenizer':
        """Returns a tokenizer with other prompts for the sides in `prompts`."""
        return PretrainedTokenizer(
            self.source,
            self._model,
            self.prompts | dict(prompts),
            self._lower,
            self._end,
            self.bos_ids,
            self._padding,
            self._rows,
        )

    @property
    def _has_ids_beyond_rows(self) -> bool:
        return 0 < self._rows < self.vocab_size

    def save(self, directory: Path | str) -> None:
        """Writes `file` to a directory, which is created if it does not exist."""
        name, data = self.file
        directory = as_path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / name, data)

    def count(self, texts: Sequence[str]) -> list[int]:
        """Returns the number of ids of each text without special tokens and prompt."""
        return [len(ids) for ids in self.encode_plain(texts)]

    @property
    def added_length(self) -> int:
        """Number of ids that special tokens and prompt add to a text, on the side with more."""
        return max(len(self._model.encode([self.prompts[side]], None)[0]) for side in SIDES)

    def count_prompt_ids(self, side: Side) -> int:
        """Returns the number of ids before those of a text: special tokens and the side's prompt;
        0 without a prompt.
        """
        if not self.prompts[side]:
            return 0
        return len(self._model.before) + len(self.encode_plain([self.prompts[side]])[0])

    @property
    def opening_ids(self) -> list[int]:
        """The special tokens that the tokenizer itself puts before each text."""
        return list(self._model.before)

    @property
    def closing_ids(self) -> list[int]:
        """The special tokens that the tokenizer itself puts after each text."""
        (ids,), (plain_ids,) = self._model.encode(['a'], None), self._model.encode_plain(['a'])
        return ids[len(self._model.before) + len(plain_ids) :]

    def find_begin_ids(self, rule: str) -> tuple[int, ...]:
        """Returns the ids that begin a text in a template.

        Args:
          rule: 'tokenizer' for the special tokens that the tokenizer itself puts before texts,
            possibly none; 'always' for the model's BOS if there are none.
        """
        return self.bos_ids if rule == 'always' else tuple(self.opening_ids)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digits that differ if any text could get other ids."""
        settings = self.prompts, self._lower, *self._ids_if_empty
        return hashlib.blake2b(
            self._model.identity + repr(settings).encode(), digest_size=16
        ).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Returns what is added around a text, as plain values for results."""
        return {'prompts': self.prompts, 'special_tokens': "the tokenizer's own"}

    def encode(self, texts: Sequence[str], side: Side, max_tokens: int) -> list[np.ndarray]:
        """Returns int32[n] ids for each text with its prompt and special tokens, 1 <= n <=
        `max_tokens`.

        A long text is truncated so that the special tokens still fit.
        """
        # sentence-transformers lowercases the prompt too.
        prompted = self._lowercase([self.prompts[side] + text for text in texts])
        found = [
            np.array(ids or self._ids_if_empty, np.int32)
            for ids in self._model.encode(prompted, max_tokens)
        ]
        if self._has_ids_beyond_rows:
            self._check_rows(texts, found)
        return found

    def _check_rows(self, texts: Sequence[str], ids_by_text: Sequence[np.ndarray]) -> None:
        """Raises UserError if a text has an id without a row in the token table."""
        for text, ids in zip(texts, ids_by_text, strict=True):
            if len(beyond := ids[ids >= self._rows]):
                raise UserError(
                    f'{self.source}: gives the text {text[:80]!r} the id {beyond[0]} '
                    f'({self.decode(beyond[:1])!r}), and the embedding has {self._rows} rows: '
                    f'remove the token from the text'
                )

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text without special tokens and prompt."""
        found = self._model.encode_plain(self._lowercase(texts))
        if self._has_ids_beyond_rows:
            self._check_rows(texts, [np.array(ids) for ids in found])
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids from `encode_plain`."""
        return self._model.decode(ids)

    def _lowercase(self, texts: Sequence[str]) -> Sequence[str]:
        return [text.lower() for text in texts] if self._lower else texts


def restore_tokenizer(data: bytes, settings: Mapping[str, Any]) -> PretrainedTokenizer:
    """Returns the tokenizer with the content and the `settings` of another one."""
    model = HuggingFaceJson(data)
    return PretrainedTokenizer(
        settings['source'],
        model,
        settings['prompts'],
        settings['lower'],
        settings['end'],
        settings['bos_ids'],
        settings['padding'],
        settings.get('rows', 0),
    )


def open_tokenizer(
    directory: Path,
    config: Mapping[str, Any],
    prompts: Mapping[Side, str],
    lower: bool,
    rows: int = 0,
) -> PretrainedTokenizer:
    """Returns the tokenizer of a directory.

    It is read from the first of these that exists: tokenizer.json, vocab.json with merges.txt, a
    sentencepiece model, llama2.c's tok*.bin.

    Args:
      directory: directory of the pretrained model.
      config: content of config.json.
      prompts: string put before each text, by side.
      lower: whether texts are lowercased.
      rows: number of rows of the token table; see `PretrainedTokenizer`.

    Raises:
      UserError: no such file exists, or it is damaged or of an unsupported kind.
    """
    tokenizer_config = read_tokenizer_config(directory)
    path = _find_file(directory)
    try:
        model = _read_model(path, config, tokenizer_config)
    except UserError:
        raise
    except Exception as error:  # the libraries raise bare exceptions
        raise UserError(f'{path}: cannot be read: {str(error).splitlines()[0]}') from None
    return PretrainedTokenizer(
        path.name,
        model,
        prompts,
        lower,
        _find_end_id(config, model.vocab_size),
        _find_bos_ids(config, tokenizer_config, model.vocab_size),
        _find_padding(tokenizer_config),
        rows,
    )


def read_tokenizer_config(directory: Path) -> dict[str, Any]:
    """Returns the content of tokenizer_config.json; {} if there is none.

    Raises:
      UserError: it is damaged, or a value is not allowed.
    """
    path = directory / 'tokenizer_config.json'
    content = read_json_file(path, optional=True)
    check_values(path, content, TOKENIZER_KEYS)
    return content


def _read_model(
    path: Path, config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]
) -> _Model:
    if path.name == 'tokenizer.json':
        return HuggingFaceJson(path.read_bytes())
    if path.name == 'vocab.json':
        return HuggingFaceJson(build_byte_level_json(path.parent, config, tokenizer_config))
    if config.get('model_type') == 'xlm-roberta':
        raise UserError(
            f'{path}: XLM-RoBERTa gives other ids to the pieces of this sentencepiece model; write '
            f'a tokenizer.json with `AutoTokenizer.from_pretrained(...).save_pretrained(...)`'
        )
    data = path.read_bytes()
    if path.suffix != '.model':
        data = convert_llama2c_tokenizer(data)
    return read_sentencepiece(path.parent, tokenizer_config, data)


def _find_end_id(config: Mapping[str, Any], vocab_size: int) -> int:
    """Returns the first valid id of EOS, BOS and padding in config.json; 0 if there is none."""
    for key in ('eos_token_id', 'bos_token_id', 'pad_token_id'):
        value = config.get(key)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, int) and 0 <= value < vocab_size:
            return value
    return 0


def _find_bos_ids(
    config: Mapping[str, Any], tokenizer_config: Mapping[str, Any], vocab_size: int
) -> list[int]:
    """Returns BOS from config.json, or [] if it is invalid or tokenizer_config.json disables it (as
    in Qwen).
    """
    if tokenizer_config.get('add_bos_token') is False:
        return []
    if tokenizer_config.get('bos_token', '') is None:
        return []
    bos_id = config.get('bos_token_id')
    return [bos_id] if isinstance(bos_id, int) and 0 <= bos_id < vocab_size else []


def _find_padding(tokenizer_config: Mapping[str, Any]) -> str:
    token = tokenizer_config.get('pad_token')
    # Older versions of transformers write a dict of the token's properties.
    return token['content'] if isinstance(token, dict) else token or ''


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory contains the file of a tokenizer."""
    return bool(_list_files(directory))


def _list_files(directory: Path) -> list[Path]:
    """Returns the files of a directory that have a tokenizer; the first one is read."""
    names = ['tokenizer.json', 'tokenizer.model', 'spiece.model']
    if (directory / 'merges.txt').is_file():
        names.insert(1, 'vocab.json')
    candidates = [directory / name for name in names]
    found = [path for path in candidates if path.is_file()]
    found += sorted(directory.glob('*.model'))
    return found + sorted(directory.glob('tok*.bin'))


def _find_file(directory: Path) -> Path:
    found = _list_files(directory)
    if not found:
        raise UserError(
            f'{directory}: holds no tokenizer.json, no vocab.json with merges.txt and no '
            f'sentencepiece model (tokenizer.model); write a tokenizer.json with '
            f'`AutoTokenizer.from_pretrained(...).save_pretrained(...)`'
        )
    return found[0]
