"""Which (documentation, function) pairs are kept: the filters of CodeSearchNet (Husain et al. 2019,
section 2).
"""

import ast
import inspect
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

# Raise it when a change here keeps other pairs: cached corpora are then built again.
FILTERS_VERSION = 1
MIN_DOC_WORDS = 3
MIN_CODE_LINES = 3

# Thresholds of the duplicate detector that CodeSearchNet ran (Allamanis 2018, as in dpu_utils).
# In tenths, so that the comparisons are exact.
SET_TENTHS = 8
MULTISET_TENTHS = 7
MIN_WORDS = 10

_WORD = re.compile(r'\w+')


def words(text: str) -> list[str]:
    """Identifiers, keywords, numbers and words, in order, without punctuation."""
    return _WORD.findall(text)


def first_paragraph(docstring: str) -> str:
    """The text before the first blank line, on one line."""
    paragraph = re.split(r'\n\s*\n', inspect.cleandoc(docstring), maxsplit=1)[0]
    return ' '.join(paragraph.split())


def path_rejection(path: str) -> str:
    """Why no function of the file is used, or ''; `path` is relative, so that a home called
    /home/tester does no harm.
    """
    return 'test path' if 'test' in path.lower() else ''


def name_rejection(name: str) -> str:
    """Why a function of this name is not used, or ''."""
    if name.startswith('__') and name.endswith('__'):
        return 'dunder name'
    return 'test name' if 'test' in name.lower() else ''


def body_rejection(body: Sequence[ast.stmt]) -> str:
    """Why a function with these statements (docstring left out) is not used, or ''."""
    return 'no implementation' if all(_does_nothing(statement) for statement in body) else ''


def _does_nothing(statement: ast.stmt) -> bool:
    ellipsis = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return ellipsis or isinstance(statement, ast.Pass | ast.Raise)


def text_rejection(doc: str, code: str) -> str:
    """Why the pair is not used, or ''; `doc` is a first paragraph, `code` has no docstring.

    Lines are counted as the reader sees them: with the line of the `def`, without blank ones. So
    `def f(self):` over `return self.x` goes, as CodeSearchNet wants getters to go.
    """
    if len(words(doc)) < MIN_DOC_WORDS:
        return 'short documentation'
    return (
        'short implementation'
        if sum(map(bool, map(str.strip, code.split('\n')))) < MIN_CODE_LINES
        else ''
    )


def exact_duplicates(texts: Sequence[str]) -> np.ndarray:
    """bool[n]: the text equals an earlier one when white space is left out."""
    seen: set[str] = set()
    repeated = np.zeros(len(texts), bool)
    for i, text in enumerate(texts):
        key = ''.join(text.split())
        repeated[i] = key in seen
        seen.add(key)
    return repeated


def near_duplicates(texts: Sequence[str]) -> np.ndarray:
    """bool[n]: the text is nearly the same as an earlier one that is kept.

    Two texts are nearly the same if their sets of words have a Jaccard similarity of at least 0.8
    and their multisets of at least 0.7; texts of fewer than 10 words are left alone. So no two of
    the kept texts are nearly the same. Every such pair is found, not most of them as with hashing:
    sets of similarity t share a word among their rarest len - ceil(t * len) + 1 (prefix filtering,
    Bayardo et al. 2007), and only texts that do are compared.
    """
    bags = [Counter(words(text)) for text in texts]
    spread = Counter(word for bag in bags for word in bag)
    rank = {
        word: i
        for i, (word, _) in enumerate(sorted(spread.items(), key=lambda item: (item[1], item[0])))
    }
    kept_by_word: dict[int, list[int]] = {}
    near = np.zeros(len(texts), bool)
    for i, bag in enumerate(bags):
        if bag.total() < MIN_WORDS:
            continue
        ranks = sorted(rank[word] for word in bag)
        prefix = ranks[: len(ranks) * (10 - SET_TENTHS) // 10 + 1]
        candidates = {j for word in prefix for j in kept_by_word.get(word, ())}
        near[i] = any(_similar(bag, bags[j]) for j in candidates)
        if not near[i]:
            for word in prefix:
                kept_by_word.setdefault(word, []).append(i)
    return near


def _similar(a: Counter[str], b: Counter[str]) -> bool:
    if 10 * min(len(a), len(b)) < SET_TENTHS * max(len(a), len(b)):
        return False
    common = a.keys() & b.keys()
    if 10 * len(common) < SET_TENTHS * (len(a) + len(b) - len(common)):
        return False
    shared = sum(min(a[word], b[word]) for word in common)
    return 10 * shared >= MULTISET_TENTHS * (a.total() + b.total() - shared)
