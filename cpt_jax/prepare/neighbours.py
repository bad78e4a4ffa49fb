"""Pair rule: neighbouring pieces of a document, cut as in the `text` source."""

import functools
from collections.abc import Iterator, Sequence

from cpt_jax.data.cutting import Cut, TokenCounter
from cpt_jax.prepare.document import Document, TextPair
from cpt_jax.runtime.errors import UserError


class CharacterCounter:
    """Counts characters where a tokenizer counts tokens."""

    fingerprint = 'characters'

    def count(self, texts: Sequence[str]) -> list[int]:
        """Returns the number of characters of each text."""
        return list(map(len, texts))


def pair_neighbours(
    document: Document,
    piece_characters: int = 1000,
    min_characters: int = 80,
    piece_tokens: int = 0,
    min_tokens: int = 20,
    tokenizer_path: str = '',
) -> Iterator[TextPair]:
    """Yields (piece i, piece i + 1) of a document (Neelakantan et al. 2022, section 2.1).

    Args:
      document: the document.
      piece_characters: maximum number of characters of a piece.
      min_characters: minimum number of characters of the last piece; a shorter one is dropped.
      piece_tokens, min_tokens: as the two above, in tokens of the tokenizer; 0: count characters.
      tokenizer_path: path of the tokenizer, for `piece_tokens`.
    """
    counter: TokenCounter
    if piece_tokens:
        cut, counter = Cut(piece_tokens, min_tokens), load_counter(tokenizer_path)
    else:
        cut, counter = Cut(piece_characters, min_characters), CharacterCounter()
    pieces = cut.split(document.text, counter)
    for x, y in zip(pieces, pieces[1:], strict=False):
        yield TextPair(x, y, document.fields)


def check_neighbours(
    piece_characters: int = 1000,
    min_characters: int = 80,
    piece_tokens: int = 0,
    min_tokens: int = 20,
    tokenizer_path: str = '',
) -> None:
    """Raises UserError if the arguments of `pair_neighbours` do not fit together."""
    if not piece_tokens:
        if not 0 < 2 * min_characters <= piece_characters:
            raise UserError(
                f'piece_characters is {piece_characters} and must be at least twice '
                f'min_characters, {min_characters}'
            )
        return
    if not tokenizer_path:
        raise UserError('piece_tokens needs a tokenizer: set tokenizer.path to its file')
    Cut(piece_tokens, min_tokens).check()
    load_counter(tokenizer_path)


@functools.cache
def load_counter(path: str) -> TokenCounter:
    """Returns the tokenizer of a path.

    Raises:
      UserError: it cannot be loaded.
    """
    from cpt_jax.text.tokenizer import load_tokenizer

    return load_tokenizer(path)
