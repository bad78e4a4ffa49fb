"""Decides whether a passage contains an answer, as in DPR's evaluation.

The code reproduces `SimpleTokenizer` and `has_answer` of DPR, which are from DrQA.
"""

import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache

_SEPARATOR = '\0'  # a control character (category C), which no token contains
# On ASCII text, this pattern matches the same tokens as `_compile_pattern()`, in a fifth of the
# time.
_ASCII = re.compile(r'[A-Za-z0-9]+|[!-~]')


def tokenize_like_dpr(text: str) -> list[str]:
    r"""Returns the lower-cased tokens of DPR's SimpleTokenizer.

    In the NFD form of the text, a token is `[\p{L}\p{N}\p{M}]+` or one character outside of
    `\p{Z}\p{C}`.
    """
    pattern = _ASCII if text.isascii() else _compile_pattern()
    return [token.lower() for token in pattern.findall(unicodedata.normalize('NFD', text))]


def make_searchable(text: str) -> str:
    """Returns the tokens of a text as a string in which `contains_answer` can search."""
    return ''.join(f'{_SEPARATOR}{token}' for token in tokenize_like_dpr(text)) + _SEPARATOR


def contains_answer(answers: Sequence[str], passage: str) -> bool:
    """Returns whether the tokens of any answer are consecutive tokens of the passage.

    Args:
      answers: results of `make_searchable`; an answer without tokens never matches.
      passage: result of `make_searchable`.
    """
    return any(answer in passage for answer in answers if answer != _SEPARATOR)


@cache
def _compile_pattern() -> re.Pattern[str]:
    """Compiles the token pattern.

    `re` does not support Unicode categories, so the pattern lists their characters.
    """
    word = ''.join(_find_ranges('LNM'))
    ignored = ''.join(_find_ranges('ZC'))
    return re.compile(f'[{word}]+|[^{word}{ignored}]')


def _find_ranges(kinds: str) -> Iterator[str]:
    """Yields the ranges of a regex character class: characters whose Unicode category starts with a
    letter in `kinds`.
    """
    first = None
    for code in range(sys.maxunicode + 2):
        inside = code <= sys.maxunicode and unicodedata.category(chr(code))[0] in kinds
        if inside and first is None:
            first = code
        elif not inside and first is not None:
            yield f'\\U{first:08x}-\\U{code - 1:08x}'
            first = None
