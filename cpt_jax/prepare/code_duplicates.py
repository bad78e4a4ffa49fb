"""Duplicates of functions, as CodeSearchNet removed them."""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np

from cpt_jax.data.filters import find_near_duplicate_bags
from cpt_jax.prepare.code_pairs import list_identifiers


def find_duplicate_functions(functions: Iterable[Sequence[str]], language: str) -> np.ndarray:
    """Returns bool[n]: whether each function is a duplicate of an earlier one that is kept.

    Two functions are duplicates if their tokens are equal, or if their sets of identifiers have a
    Jaccard similarity of at least 0.8 and their multisets of at least 0.7 (Allamanis 2018, as in
    the DuplicateDetector of dpu_utils). Of functions that are connected by duplicates,
    CodeSearchNet keeps one; here a function is compared with those that are kept.

    Args:
      functions: tokens of each function, all of one language.
      language: name of the language.
    """
    seen: set[bytes] = set()
    repeated: list[bool] = []
    bags: list[Counter[str]] = []
    for tokens in functions:
        key = blake2b('\0'.join(tokens).encode(), digest_size=16).digest()
        repeated.append(key in seen)
        if not repeated[-1]:
            bags.append(Counter(map(sys.intern, list_identifiers(tokens, language))))
        seen.add(key)
    is_duplicate = np.array(repeated, bool)
    is_duplicate[~is_duplicate] = find_near_duplicate_bags(bags)
    return is_duplicate
