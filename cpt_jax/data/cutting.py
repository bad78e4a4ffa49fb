"""Splits documents into pieces of whole sentences."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from cpt_jax.runtime.errors import UserError

# Increment when a change to the code below changes the pieces of the same documents.
CUTTING_VERSION = 1

_PARAGRAPH_END = re.compile(r'\n\s*\n')
_SENTENCE_END = re.compile(r'(?:(?<=[.!?…])|(?<=[.!?…]["\')\]’”]))\s+')


class TokenCounter(Protocol):
    """The part of a tokenizer's interface that counts tokens."""

    @property
    def fingerprint(self) -> str: ...

    def count(self, texts: Sequence[str]) -> list[int]:
        """Returns the number of tokens of each text, without delimiters."""


class Cut(NamedTuple):
    """How to split a document into pieces.

    Attributes:
      piece_tokens: maximum number of tokens of a piece.
      min_tokens: minimum number of tokens of a piece.
    """

    piece_tokens: int
    min_tokens: int

    def check(self) -> None:
        """Raises UserError if the limits do not fit together."""
        if not 0 < 2 * self.min_tokens <= self.piece_tokens:
            raise UserError(
                f'piece_tokens is {self.piece_tokens} and must be at least twice min_tokens, '
                f'{self.min_tokens}'
            )

    def split(self, document: str, tokenizer: TokenCounter) -> list[str]:
        """Returns the document's pieces in order; a last piece below `min_tokens` is dropped.

        A piece's length is the sum of its sentences' lengths plus one for each joint. It may differ
        from the token count of the whole piece by a token or two, if a tokenizer merges across
        sentences.
        """
        pieces: list[str] = []
        piece = ''
        tokens = 0
        for joint, text, count in self._split_into_segments(document, tokenizer):
            if piece and tokens + 1 + count > self.piece_tokens:
                pieces.append(piece)
                piece = ''
            if piece:
                piece += joint + text
                tokens += 1 + count
            else:
                piece = text
                tokens = count
        if tokens >= self.min_tokens:
            pieces.append(piece)
        return pieces

    def _split_into_segments(
        self, document: str, tokenizer: TokenCounter
    ) -> Iterator[tuple[str, str, int]]:
        """Yields (joint to the previous segment, text, tokens) of each sentence, or part of a long
        sentence.

        A segment has at most piece_tokens - min_tokens tokens. A piece without room for the next
        segment therefore has at least `min_tokens`.
        """
        most = self.piece_tokens - self.min_tokens
        joints, texts = zip(*_split_into_sentences(document), strict=True)
        for joint, text, count in zip(joints, texts, tokenizer.count(texts), strict=True):
            parts = [(text, count)] if count <= most else _split_in_halves(text, tokenizer, most)
            for i, (part, part_count) in enumerate(parts):
                yield (' ' if i else joint), part, part_count


def _split_into_sentences(document: str) -> Iterator[tuple[str, str]]:
    """Yields (joint to the previous sentence, sentence).

    The lines of a paragraph are joined, because they are only wrapped.
    """
    for paragraph in _PARAGRAPH_END.split(document.strip()):
        for i, sentence in enumerate(_SENTENCE_END.split(' '.join(paragraph.split()))):
            yield (' ' if i else '\n'), sentence


def _split_in_halves(text: str, tokenizer: TokenCounter, most: int) -> list[tuple[str, int]]:
    """Returns (part, tokens) of a text that is halved until no part has more than `most` tokens.

    Texts are split at white space if possible.
    """
    count = tokenizer.count([text])[0]
    if count <= most or len(text) == 1:
        return [(text, count)]
    middle = len(text) // 2
    space = text.rfind(' ', 0, middle)
    if space <= 0:
        space = text.find(' ', 1)
    if space > 0:
        left = text[:space]
        right = text[space + 1 :]
    else:
        left = text[:middle]
        right = text[middle:]
    return _split_in_halves(left, tokenizer, most) + _split_in_halves(right, tokenizer, most)
