"""Token ids of texts in a prompt template, with the interface of `Tokenizer`.

It is for language models that read a template around each text instead of delimiters.
"""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.atomic_write import write_atomically
from cpt_jax.text.pretrained_tokenizer import PretrainedTokenizer
from cpt_jax.text.prompt_template import Prompt
from cpt_jax.text.tokenizer import Side, Tokenizer


class PlainTokenizer(Protocol):
    """A tokenizer that can encode without special tokens, delimiters and prompts: `Tokenizer` or
    `PretrainedTokenizer`.
    """

    vocab_size: int

    @property
    def fingerprint(self) -> str:
        """Hex digits that differ if any text could get other ids."""

    @property
    def file(self) -> tuple[str, bytes]:
        """(name, content) of the tokenizer's file."""

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class PromptTokenizer:
    """A tokenizer that puts texts into a template; the state at the last id is a text's vector.

    Attributes:
      prompt: template and demonstrations around a text.
      bos_ids: ids prepended to every filled template, usually BOS; no ids are appended.
      vocab_size: number of ids of the wrapped tokenizer.
      added_ids: ids that a pretrained model does not have; always empty.
    """

    added_ids = ()

    def __init__(self, tokenizer: PlainTokenizer, prompt: Prompt, bos_ids: Sequence[int]):
        self._tokenizer = tokenizer
        self.prompt = prompt
        self.bos_ids = tuple(bos_ids)
        self.vocab_size = tokenizer.vocab_size
        # An empty text without template and BOS has no state to pool. It is read as a full stop, as
        # SentEval's blank lines are.
        self._ids_if_empty = tokenizer.encode_plain(['.'])[0]

    def encode(self, texts: Sequence[str], side: Side, max_tokens: int) -> list[np.ndarray]:
        """Returns int32[n] ids for each text in its template, 1 <= n <= `max_tokens`.

        A long text is truncated at its end, the template never: the text's ids are truncated,
        decoded and put into the template again. Both sides have the same template.

        Raises:
          UserError: the template alone has more than `max_tokens` tokens.
        """
        del side
        if self.prompt.text_tokens:
            texts = self._truncate(texts, self.prompt.text_tokens)
        filled_ids = self._encode_filled([self.prompt.fill(text) for text in texts])
        return [
            np.array(
                self._truncate_and_encode(text, ids, max_tokens) if len(ids) > max_tokens else ids,
                np.int32,
            )
            for text, ids in zip(texts, filled_ids, strict=True)
        ]

    def with_prompt(self, prompt: Prompt) -> 'PromptTokenizer':
        """Returns the same tokenizer with another prompt."""
        return PromptTokenizer(self._tokenizer, prompt, self.bos_ids)

    def count(self, texts: Sequence[str]) -> list[int]:
        """Returns the number of ids of each text, without its template."""
        return [len(ids) for ids in self._tokenizer.encode_plain(texts)]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids."""
        return self._tokenizer.decode(ids)

    @property
    def template_length(self) -> int:
        """Number of ids around a text: those of the template with an empty text."""
        return len(self._encode_filled([self.prompt.fill('')])[0])

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digits that differ if any text could get other ids."""
        settings = self._tokenizer.fingerprint, self.prompt, self.bos_ids
        return hashlib.blake2b(repr(settings).encode(), digest_size=16).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Returns the template and how long texts are truncated, as plain values for results."""
        limit = {'text_tokens': self.prompt.text_tokens} if self.prompt.text_tokens else {}
        return {
            **self.prompt.describe(),
            'begin': list(self.bos_ids),
            'truncation': 'end of the text, within its template',
            **limit,
        }

    @property
    def file(self) -> tuple[str, bytes]:
        """(name, content) of the wrapped tokenizer's file."""
        return self._tokenizer.file

    def save(self, directory: Path | str) -> None:
        """Writes the wrapped tokenizer's file into a directory."""
        name, data = self.file
        Path(directory).mkdir(parents=True, exist_ok=True)
        write_atomically(Path(directory) / name, data)

    def _encode_filled(self, strings: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each filled template, with BOS."""
        return [
            [*self.bos_ids, *ids] or self._ids_if_empty
            for ids in self._tokenizer.encode_plain(strings)
        ]

    def _truncate(self, texts: Sequence[str], max_tokens: int) -> list[str]:
        found = zip(texts, self._tokenizer.encode_plain(texts), strict=True)
        return [
            text if len(ids) <= max_tokens else self._decode_prefix(ids[:max_tokens])
            for text, ids in found
        ]

    def _decode_prefix(self, ids: Sequence[int]) -> str:
        """Returns the text of the first ids of a longer text.

        If the truncation split a character, up to three ids of its bytes are dropped, because the
        tokenizers library decodes no part of a run of byte ids that ends in such a character.
        """
        texts = [self._tokenizer.decode(ids[: len(ids) - cut]) for cut in range(min(4, len(ids)))]
        for text in texts:
            if not text.endswith('\ufffd'):
                return text
        return texts[0] if texts else ''

    def _truncate_and_encode(self, text: str, ids: list[int], max_tokens: int) -> list[int]:
        """Returns the ids of the filled template with as much of a text as fits.

        The decoded beginning of a text may have other ids within the template, so the text is
        shortened until the result fits.
        """
        (text_ids,) = self._tokenizer.encode_plain([text])
        kept = len(text_ids)
        while len(ids) > max_tokens and kept:
            kept = max(0, kept - (len(ids) - max_tokens))
            (ids,) = self._encode_filled([self.prompt.fill(self._decode_prefix(text_ids[:kept]))])
        if len(ids) > max_tokens:
            template = self.prompt.fill('')  # may be pages long, because of demonstrations
            shown = repr(template)
            if len(template) > 200:
                shown = f'{template[:100]!r} ... {template[-60:]!r}'
            raise UserError(
                f'the template {shown} takes {len(ids)} tokens, and the model reads {max_tokens}: '
                f'shorten it'
            )
        return ids


# What turns texts into ids for an encoder: with delimiters, with the special tokens and prompts of
# a pretrained model, or in a template.
TextTokenizer = Tokenizer | PretrainedTokenizer | PromptTokenizer
