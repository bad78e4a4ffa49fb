"""Whether a passage holds an answer: the match of DPR's evaluation (`SimpleTokenizer` and
`has_answer`, after DrQA).
"""

import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache

_BETWEEN = '\0'  # of category C: no token holds it
_ASCII = re.compile(r'[A-Za-z0-9]+|[!-~]')  # what `_pattern` is for such texts, 5 times as fast


def dpr_tokens(text: str) -> list[str]:
    r"""DPR's SimpleTokenizer, uncased: `[\p{L}\p{N}\p{M}]+` or one character outside of
    `\p{Z}\p{C}`, of the text in NFD.
    """
    pattern = _ASCII if text.isascii() else _pattern()
    return [token.lower() for token in pattern.findall(unicodedata.normalize('NFD', text))]


def searchable(text: str) -> str:
    """The tokens of a text in a form in which `occurs` looks for others."""
    return ''.join(f'{_BETWEEN}{token}' for token in dpr_tokens(text)) + _BETWEEN


def occurs(answers: Sequence[str], passage: str) -> bool:
    """Whether one of the answers stands in the passage, token by token; both as `searchable` gives
    them. One without tokens does not.
    """
    return any(answer in passage for answer in answers if answer != _BETWEEN)


@cache
def _pattern() -> re.Pattern[str]:
    """`re` knows no categories of Unicode, so they are written out."""
    word, nothing = (''.join(_ranges(kinds)) for kinds in ('LNM', 'ZC'))
    return re.compile(f'[{word}]+|[^{word}{nothing}]')


def _ranges(kinds: str) -> Iterator[str]:
    """The characters whose category begins with one of `kinds`, as ranges of a character class."""
    first = None
    for code in range(sys.maxunicode + 2):
        inside = code <= sys.maxunicode and unicodedata.category(chr(code))[0] in kinds
        if inside and first is None:
            first = code
        elif not inside and first is not None:
            yield f'\\U{first:08x}-\\U{code - 1:08x}'
            first = None
