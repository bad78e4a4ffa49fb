"""Filters for (documentation, function) pairs, as in CodeSearchNet.

See Husain et al. 2019, section 2.
"""

import ast
import inspect
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

# Increment when a change to the filters changes the pairs that are kept; cached corpora are then
# rebuilt.
FILTERS_VERSION = 1
MIN_DOC_WORDS = 3
MIN_CODE_LINES = 3

# Jaccard thresholds of the duplicate detector that CodeSearchNet used (Allamanis 2018, as in
# dpu_utils), in tenths, so that comparisons are exact integer arithmetic.
SET_TENTHS = 8
MULTISET_TENTHS = 7
MIN_WORDS = 10

_WORD = re.compile(r'\w+')


def split_words(text: str) -> list[str]:
    """Returns identifiers, keywords, numbers and words in order, without punctuation."""
    return _WORD.findall(text)


def extract_first_paragraph(docstring: str) -> str:
    """Returns the text before the first blank line, on one line."""
    paragraph = re.split(r'\n\s*\n', inspect.cleandoc(docstring), maxsplit=1)[0]
    return ' '.join(paragraph.split())


def explain_rejected_path(path: str) -> str:
    """Returns the reason why all functions of a file are rejected, or ''.

    Args:
      path: relative path of the file, so that a home directory such as /home/tester has no effect.
    """
    return 'test path' if 'test' in path.lower() else ''


def explain_rejected_name(name: str) -> str:
    """Returns the reason why a function with this name is rejected, or ''."""
    if name.startswith('__') and name.endswith('__'):
        return 'dunder name'
    return 'test name' if 'test' in name.lower() else ''


def explain_rejected_body(body: Sequence[ast.stmt]) -> str:
    """Returns the reason why a function with these statements is rejected, or ''.

    Args:
      body: statements of the function without its docstring.
    """
    return 'no implementation' if all(_does_nothing(statement) for statement in body) else ''


def _does_nothing(statement: ast.stmt) -> bool:
    ellipsis = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return ellipsis or isinstance(statement, ast.Pass | ast.Raise)


def explain_rejected_text(doc: str, code: str) -> str:
    """Returns the reason why a pair is rejected, or ''.

    The line with `def` counts as a line of code, blank lines do not. A getter, `def f(self):` with
    `return self.x`, is therefore rejected, as CodeSearchNet intends.

    Args:
      doc: first paragraph of the docstring.
      code: source of the function without its docstring.
    """
    if len(split_words(doc)) < MIN_DOC_WORDS:
        return 'short documentation'
    lines = [line for line in code.split('\n') if line.strip()]
    return 'short implementation' if len(lines) < MIN_CODE_LINES else ''


def find_exact_duplicates(texts: Sequence[str]) -> np.ndarray:
    """Returns bool[n]: whether each text equals an earlier one, ignoring white space."""
    seen: set[str] = set()
    repeated = np.zeros(len(texts), bool)
    for i, text in enumerate(texts):
        key = ''.join(text.split())
        repeated[i] = key in seen
        seen.add(key)
    return repeated


def find_near_duplicates(texts: Sequence[str]) -> np.ndarray:
    """Returns bool[n]: whether each text is a near duplicate of an earlier text that is kept.

    Two texts are near duplicates if their sets of words have a Jaccard similarity of at least 0.8
    and their multisets of at least 0.7. Texts with fewer than 10 words are never near duplicates.

    All near duplicates are found, unlike with hashing: two sets with similarity t share a word
    among their rarest len - ceil(t * len) + 1 words (prefix filtering, Bayardo et al. 2007), so
    only texts that share such a word are compared.
    """
    return find_near_duplicate_bags([Counter(split_words(text)) for text in texts])


def find_near_duplicate_bags(bags: Sequence[Counter[str]]) -> np.ndarray:
    """Returns bool[n]: the result of `find_near_duplicates` for texts with these words.

    Args:
      bags: number of occurrences of each word, for each text.
    """
    document_counts = Counter(word for bag in bags for word in bag)
    rarest_first = sorted(document_counts, key=lambda word: (document_counts[word], word))
    rank = {word: i for i, word in enumerate(rarest_first)}
    kept_by_word: dict[int, list[int]] = {}
    is_duplicate = np.zeros(len(bags), bool)
    for i, bag in enumerate(bags):
        if bag.total() < MIN_WORDS:
            continue
        ranks = sorted(rank[word] for word in bag)
        prefix = ranks[: len(ranks) * (10 - SET_TENTHS) // 10 + 1]
        candidates = {j for word in prefix for j in kept_by_word.get(word, ())}
        is_duplicate[i] = any(_are_similar(bag, bags[j]) for j in candidates)
        if not is_duplicate[i]:
            for word in prefix:
                kept_by_word.setdefault(word, []).append(i)
    return is_duplicate


def _are_similar(a: Counter[str], b: Counter[str]) -> bool:
    if 10 * min(len(a), len(b)) < SET_TENTHS * max(len(a), len(b)):
        return False
    common = a.keys() & b.keys()
    if 10 * len(common) < SET_TENTHS * (len(a) + len(b) - len(common)):
        return False
    shared = sum(min(a[word], b[word]) for word in common)
    return 10 * shared >= MULTISET_TENTHS * (a.total() + b.total() - shared)
