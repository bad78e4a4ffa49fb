"""The tokenizer of a pretrained model: its special tokens and prompts around a text."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.atomic_write import write_atomically
from cpt_jax.storage.paths import as_path
from cpt_jax.text.hugging_face_json import HuggingFaceJson
from cpt_jax.text.tokenizer import SIDES, Side


class TokenizerModel(Protocol):
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
        model: TokenizerModel,
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
          bos_ids: BOS from config.json or a GGUF file, used if the tokenizer itself puts nothing
            before texts.
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
        if self._has_ids_beyond_rows:
            settings['rows'] = self._rows
        if self._truncates_left:
            settings['truncation_side'] = 'left'
        return settings

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
    def _truncates_left(self) -> bool:
        return isinstance(self._model, HuggingFaceJson) and self._model.truncates_left

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

        Raises:
          UserError: the rule is 'always', and no BOS is known.
        """
        if rule != 'always':
            return tuple(self.opening_ids)
        if not self.bos_ids:
            raise UserError(
                f"begin_token='always': {self.source} puts no token before texts, and the model "
                f'has no BOS (bos_token_id is missing, or tokenizer_config.json disables it): '
                f"choose begin_token='tokenizer'"
            )
        return self.bos_ids

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digits that differ if any text could get other ids."""
        settings = self.prompts, self._lower, *self._ids_if_empty
        return hashlib.blake2b(
            self._model.identity + repr(settings).encode(), digest_size=16
        ).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Returns what is added around a text, as plain values for results."""
        described = {'prompts': self.prompts, 'special_tokens': "the tokenizer's own"}
        return described | ({'truncation': 'beginning'} if self._truncates_left else {})

    def encode(self, texts: Sequence[str], side: Side, max_tokens: int) -> list[np.ndarray]:
        """Returns int32[n] ids for each text with its prompt and special tokens, 1 <= n <=
        `max_tokens`.

        A long text is truncated so that the special tokens still fit.

        Raises:
          UserError: the special tokens alone do not fit, or an id has no row in the token table.
        """
        # sentence-transformers lowercases the prompt too.
        prompted = self._lowercase([self.prompts[side] + text for text in texts])
        found = [
            np.array(ids or self._ids_if_empty, np.int32)
            for ids in self._model.encode(prompted, max_tokens)
        ]
        if self._has_ids_beyond_rows:
            self._check_rows(texts, found)
        if found and max(map(len, found)) > max_tokens:
            raise UserError(
                f'max_tokens={max_tokens}: the special tokens of {self.source} alone need more'
            )
        return found

    def _check_rows(self, texts: Sequence[str], ids_by_text: Sequence[np.ndarray]) -> None:
        """Raises UserError if a text has an id without a row in the token table."""
        for text, ids in zip(texts, ids_by_text, strict=True):
            if len(beyond := ids[ids >= self._rows].tolist()):
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
    model = HuggingFaceJson(data, settings.get('truncation_side') == 'left')
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
