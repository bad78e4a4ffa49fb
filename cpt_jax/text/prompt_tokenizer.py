"""Texts in a template to ids: the face of `Tokenizer`, for a language model that reads words around
a text instead of delimiters.
"""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.atomic_write import write_atomically
from cpt_jax.text.prompt_template import Prompt
from cpt_jax.text.tokenizer import Side


class Plain(Protocol):
    """A tokenizer that can leave special tokens, delimiters and prompts out: `Tokenizer` and
    `OwnTokenizer`.
    """

    vocab_size: int

    @property
    def fingerprint(self) -> str:
        """Hex digits that differ when any text could get other ids."""

    @property
    def file(self) -> tuple[str, bytes]:
        """Name and content of the tokenizer's file."""

    def pieces(self, texts: Sequence[str]) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class PromptTokenizer:
    """Puts texts into a template and turns them into ids; a text's vector is then the state at the
    last of them.

    Attributes:
      prompt: the words around a text.
      begin: ids before everything: the beginning-of-text of the model's own tokenizer. Nothing
        stands behind the template.
      vocab_size: number of ids of the tokenizer itself.
      added: ids that a pretrained model does not have; none.
    """

    added = ()

    def __init__(self, tokenizer: Plain, prompt: Prompt, begin: Sequence[int]):
        self._tokenizer, self.prompt, self.begin = tokenizer, prompt, tuple(begin)
        self.vocab_size = tokenizer.vocab_size
        # Where nothing stands around a text and it is empty, there would be no state to take: a
        # full stop, as of SentEval's blank lines.
        self._nothing = tokenizer.pieces(['.'])[0]

    def encode(self, texts: Sequence[str], side: Side, max_tokens: int) -> list[np.ndarray]:
        """Ids of each text in its template, at least one, at most `max_tokens`, int32; both sides
        read the same words.

        What is too long is cut at the end of the text, never in the template: its ids are cut,
        decoded, and put into the template again.
        """
        del side
        texts = self._cut(texts, self.prompt.text_tokens) if self.prompt.text_tokens else texts
        found = zip(texts, self._ids([self.prompt.fill(text) for text in texts]), strict=True)
        return [
            np.array(
                self._shortened(text, ids, max_tokens) if len(ids) > max_tokens else ids, np.int32
            )
            for text, ids in found
        ]

    def reading(self, prompt: Prompt) -> 'PromptTokenizer':
        """The same tokenizer, of texts in another template."""
        return PromptTokenizer(self._tokenizer, prompt, self.begin)

    def count(self, texts: Sequence[str]) -> list[int]:
        """Number of ids of each text, without what stands around it."""
        return [len(ids) for ids in self._tokenizer.pieces(texts)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids."""
        return self._tokenizer.decode(ids)

    @property
    def around(self) -> int:
        """Ids that stand around a text."""
        return len(self._ids([self.prompt.fill('')])[0])

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digits that differ when any text could get other ids."""
        what = self._tokenizer.fingerprint, self.prompt, self.begin
        return hashlib.blake2b(repr(what).encode(), digest_size=16).hexdigest()

    def describe(self) -> dict[str, Any]:
        """What stands around a text, and where a long one is cut, for results."""
        cut = {'text_tokens': self.prompt.text_tokens} if self.prompt.text_tokens else {}
        return {
            **self.prompt.describe(),
            'begin': list(self.begin),
            'truncation': 'end of the text, within its template',
            **cut,
        }

    @property
    def file(self) -> tuple[str, bytes]:
        """Name and content of the tokenizer's own file."""
        return self._tokenizer.file

    def save(self, directory: Path | str) -> None:
        """Writes the tokenizer's own file into a directory."""
        name, data = self.file
        Path(directory).mkdir(parents=True, exist_ok=True)
        write_atomically(Path(directory) / name, data)

    def _ids(self, filled: Sequence[str]) -> list[list[int]]:
        return [[*self.begin, *ids] or self._nothing for ids in self._tokenizer.pieces(filled)]

    def _cut(self, texts: Sequence[str], tokens: int) -> list[str]:
        found = zip(texts, self._tokenizer.pieces(texts), strict=True)
        return [
            text if len(ids) <= tokens else self._beginning(ids[:tokens]) for text, ids in found
        ]

    def _beginning(self, ids: Sequence[int]) -> str:
        """The text of the first ids of a longer one, without up to three bytes of a character that
        was cut apart.

        Of a row of bytes that ends in such a character tokenizers' decoder shows none.
        """
        texts = [self._tokenizer.decode(ids[: len(ids) - cut]) for cut in range(min(4, len(ids)))]
        return next(
            (text for text in texts if not text.endswith('\ufffd')), texts[0] if texts else ''
        )

    def _shortened(self, text: str, ids: list[int], max_tokens: int) -> list[int]:
        """The ids of as much of a text as fits: its decoded beginning may have other ids in the
        template, so that it is tried.
        """
        (own,) = self._tokenizer.pieces([text])
        kept = len(own)
        while len(ids) > max_tokens and kept:
            kept = max(0, kept - (len(ids) - max_tokens))
            (ids,) = self._ids([self.prompt.fill(self._beginning(own[:kept]))])
        if len(ids) > max_tokens:
            words = self.prompt.fill('')  # demonstrations too, which may be pages
            shown = repr(words) if len(words) <= 200 else f'{words[:100]!r} ... {words[-60:]!r}'
            raise UserError(
                f'the template {shown} takes {len(ids)} tokens, and the model reads {max_tokens}: '
                f'shorten it'
            )
        return ids
