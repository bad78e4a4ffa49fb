"""Finds texts of test sets in pairs.

A test text of 5 to 13 words is found whole, and a longer one by any of its windows of 13 words
(Brown et al. 2020, appendix C). Shorter texts are common phrases: they are counted, not removed.
Case, punctuation and white space do not count.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cpt_jax.data.pairs import digest_texts
from cpt_jax.data.prepared import is_queries_only
from cpt_jax.prepare.document import TextPair
from cpt_jax.prepare.words import hash_words, iterate_windows, split_normalized_words
from cpt_jax.storage.atomic_write import open_atomically
from cpt_jax.storage.cache import array_to_json, json_to_array

SHORTEST = 5
LONGEST = 13
_EXAMPLES = 5
# One in this many entries of the table that is looked at first is set.
_SPARSITY = 32


@dataclasses.dataclass(frozen=True)
class BenchmarkTexts:
    """The windows of all test texts.

    Attributes:
      names: names of the test sets.
      hashes: for each number of words, uint64 hashes of the windows, sorted.
      sets: for each number of words, uint16 index of the test set of each window.
      notes: for each test set, the number of its texts, and of those that are too short.
      not_covered: names of test sets whose texts are unknown.
    """

    names: list[str]
    hashes: dict[int, np.ndarray]
    sets: dict[int, np.ndarray]
    notes: dict[str, dict[str, int]]
    not_covered: list[str]

    @functools.cached_property
    def _may_occur(self) -> np.ndarray:
        """bool[2**b], whether some window has a hash that begins with these b bits."""
        total = sum(map(len, self.hashes.values()))
        bits = max(int(total * _SPARSITY).bit_length(), 8)
        table = np.zeros(1 << bits, bool)
        for hashes in self.hashes.values():
            table[hashes >> np.uint64(64 - bits)] = True
        return table

    def find(self, words_N: np.ndarray) -> dict[int, tuple[int, int]]:
        """Returns {index of a test set: (index of the first word, number of words)} of the first
        window of each test set that occurs in a text.

        Args:
          words_N: uint64, hashes of the words of the text.
        """
        found: dict[int, tuple[int, int]] = {}
        table = self._may_occur
        shift = np.uint64(64 - (len(table).bit_length() - 1))
        for n, windows in iterate_windows(words_N, LONGEST):
            if n not in self.hashes:
                continue
            for start in np.flatnonzero(table[windows >> shift]).tolist():
                first = np.searchsorted(self.hashes[n], windows[start], 'left')
                last = np.searchsorted(self.hashes[n], windows[start], 'right')
                for index in self.sets[n][first:last].tolist():
                    found.setdefault(index, (start, n))
        return found

    @property
    def fingerprint(self) -> str:
        """Digest of all windows."""
        return digest_texts(*(repr((n, self.hashes[n].tobytes())) for n in sorted(self.hashes)))

    def save(self, path: Path) -> None:
        """Writes the windows into a .npz file."""
        arrays = {'notes': json_to_array([self.names, self.notes, self.not_covered])}
        for n in self.hashes:
            arrays |= {f'hashes_{n}': self.hashes[n], f'sets_{n}': self.sets[n]}
        with open_atomically(path) as file:
            np.savez(file, allow_pickle=False, **arrays)


def index_test_texts(texts: Mapping[str, Iterable[str] | None]) -> BenchmarkTexts:
    """Returns the windows of test texts.

    Args:
      texts: texts by name of the test set; None if they are unknown.
    """
    names: list[str] = []
    notes: dict[str, dict[str, int]] = {}
    windows: dict[int, list[np.ndarray]] = {}
    owners: dict[int, list[np.ndarray]] = {}
    for name, found in texts.items():
        if found is None:
            continue
        notes[name] = {'texts': 0, 'short': 0}
        for text in dict.fromkeys(found):
            notes[name]['texts'] += 1
            words_N = hash_words(text)
            length = min(len(words_N), LONGEST)
            if length < SHORTEST:
                notes[name]['short'] += 1
                continue
            *_, (n, hashes) = iterate_windows(words_N, length)
            windows.setdefault(n, []).append(hashes)
            owners.setdefault(n, []).append(np.full(len(hashes), len(names), np.uint16))
        names.append(name)
    all_hashes, all_sets = {}, {}
    for n in windows:
        pairs = np.zeros(sum(map(len, windows[n])), [('hash', '<u8'), ('set', '<u2')])
        pairs['hash'] = np.concatenate(windows[n])
        pairs['set'] = np.concatenate(owners[n])
        pairs = np.unique(pairs)
        all_hashes[n] = np.ascontiguousarray(pairs['hash'])
        all_sets[n] = np.ascontiguousarray(pairs['set'])
    unknown = [name for name, found in texts.items() if found is None]
    return BenchmarkTexts(names, all_hashes, all_sets, notes, unknown)


@functools.cache
def load_test_texts(path: Path) -> BenchmarkTexts:
    """Returns the windows that `BenchmarkTexts.save` stored."""
    with np.load(path) as saved:
        names, notes, unknown = array_to_json(saved['notes'])
        lengths = [int(key.removeprefix('hashes_')) for key in saved.files if 'hashes' in key]
        hashes = {n: saved[f'hashes_{n}'] for n in lengths}
        return BenchmarkTexts(
            names, hashes, {n: saved[f'sets_{n}'] for n in lengths}, notes, unknown
        )


class Decontaminator:
    """Finds test texts in the pairs of a task, and counts them.

    Attributes:
      found: by test set, the number of pairs and of hard negatives with one of its texts, and
        examples.
    """

    def __init__(self, tests: BenchmarkTexts):
        self._tests = tests
        self.found: dict[str, dict[str, Any]] = {}
        # Neighbouring pairs share a text.
        self._hash_words = functools.lru_cache(4)(hash_words)

    def is_contaminated(self, pair: TextPair, name: str) -> bool:
        """Returns whether a pair contains a test text, also across the end of x.

        Args:
          pair: the pair.
          name: its name, for the examples.
        """
        return self._find((pair.x, pair.y), name, 'pairs')

    def remove_negatives(self, pair: TextPair, name: str) -> TextPair:
        """Returns a pair without the hard negatives that contain a test text.

        Args:
          pair: the pair.
          name: its name, for the examples.
        """
        kept = tuple(
            text
            for i, text in enumerate(pair.negatives)
            if not self._find((text,), f'{name}, negative {i}', 'negatives')
        )
        if len(kept) == len(pair.negatives):
            return pair
        return pair._replace(fields={**pair.fields, 'negatives': kept})

    def _find(self, texts: Sequence[str], name: str, unit: str) -> bool:
        """Returns whether texts, joined, contain a test text, and counts it as a `unit`."""
        found = self._tests.find(np.concatenate([self._hash_words(text) for text in texts]))
        for index, (start, n) in found.items():
            entry = self.found.setdefault(self._tests.names[index], _make_entry())
            entry[unit] += 1
            if len(entry['examples']) < _EXAMPLES:
                words = [word for text in texts for word in split_normalized_words(text)]
                entry['examples'].append([name, ' '.join(words[start : start + n])])
        return bool(found)


def _make_entry() -> dict[str, Any]:
    return {'pairs': 0, 'negatives': 0, 'examples': []}


def report_contamination(
    tests: BenchmarkTexts, parts: Iterable[Mapping[str, Mapping[str, Any]]], documents: bool
) -> dict[str, Any]:
    """Returns the report of a data set, for summary.json.

    Args:
      tests: the test texts.
      parts: `Decontaminator.found` of each task.
      documents: see Decontamination.
    """
    sets: dict[str, dict[str, Any]] = {
        name: {
            **tests.notes[name],
            'searched': tests.notes[name]['texts'] - tests.notes[name]['short'],
            'queries_only': is_queries_only(name, documents),
            **_make_entry(),
        }
        for name in tests.names
    }
    for part in parts:
        for name, entry in part.items():
            sets[name]['pairs'] += entry['pairs']
            sets[name]['negatives'] += entry['negatives']
            room = _EXAMPLES - len(sets[name]['examples'])
            sets[name]['examples'] += entry['examples'][:room]
    return {
        'fingerprint': tests.fingerprint,
        'documents': documents,
        'sets': sets,
        'not_covered': tests.not_covered,
    }
