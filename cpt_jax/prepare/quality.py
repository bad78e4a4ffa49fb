"""Quality rules for prose that need no model: those of Gopher (Rae et al. 2021, appendix A.1) that
do not depend on a list of words, and of C4 (Raffel et al. 2020, section 2.2).

The limits are those of the papers.
"""

import re
from collections import Counter

_WORD = re.compile(r'\S+')
_MIN_WORDS = 50
_MAX_WORDS = 100_000
_MIN_MEAN_LENGTH = 3
_MAX_MEAN_LENGTH = 10
_MAX_SYMBOLS = 0.1
_MAX_BULLETS = 0.9
_MAX_ELLIPSES = 0.3
_MIN_ALPHABETIC = 0.8
_MAX_REPEATED_LINES = 0.3
_MAX_REPEATED_LINE_CHARACTERS = 0.2
_BULLETS = ('-', '*', '•', '‣', '●')


def explain_poor_quality(text: str) -> str:
    """Returns the first rule that a text breaks, or ''."""
    words = _WORD.findall(text)
    if len(words) < _MIN_WORDS:
        return f'fewer than {_MIN_WORDS} words'
    if len(words) > _MAX_WORDS:
        return f'more than {_MAX_WORDS:,} words'
    mean = sum(map(len, words)) / len(words)
    if not _MIN_MEAN_LENGTH <= mean <= _MAX_MEAN_LENGTH:
        return 'mean length of words'
    if (text.count('#') + text.count('...') + text.count('…')) / len(words) > _MAX_SYMBOLS:
        return 'many symbols'
    if sum(any(map(str.isalpha, word)) for word in words) / len(words) < _MIN_ALPHABETIC:
        return 'many words without letters'
    if 'lorem ipsum' in text.lower():
        return 'lorem ipsum'
    return _explain_poor_lines([line.strip() for line in text.splitlines() if line.strip()])


def _explain_poor_lines(lines: list[str]) -> str:
    """Returns the first rule that the lines of a text break, or ''."""
    if sum(line.startswith(_BULLETS) for line in lines) / len(lines) > _MAX_BULLETS:
        return 'many bullet points'
    if sum(line.endswith(('...', '…')) for line in lines) / len(lines) > _MAX_ELLIPSES:
        return 'many lines with an ellipsis'
    counts = Counter(lines)
    repeated = len(lines) - len(counts)
    characters = sum(len(line) * (count - 1) for line, count in counts.items())
    if repeated / len(lines) > _MAX_REPEATED_LINES:
        return 'repeated lines'
    if characters / sum(map(len, lines)) > _MAX_REPEATED_LINE_CHARACTERS:
        return 'repeated lines'
    return ''
