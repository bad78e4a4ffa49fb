"""The words of a text as numbers, for the comparison of texts whatever their case and punctuation.

A window of n words has the hash `sum over j of h[i + j] * M**j` modulo 2**64, where h are the
hashes of its words. The hashes of all windows of 1 to n words of a text take n additions of arrays.
"""

import re
import unicodedata
from collections.abc import Iterator
from hashlib import blake2b

import numpy as np

# Scripts that put no spaces between words: Thai, Lao, Myanmar, Khmer, Hiragana, Katakana, Han. Each
# of their characters is a word. The ranges have their vowel signs too, which \w does not match.
_UNSPACED = (
    r'\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff'
    r'\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff'
)
_WORD = re.compile(rf'[{_UNSPACED}]|[^\W_{_UNSPACED}]+')
# In the Penn Treebank's tokens, "don't" is "do n't", and "it's" is "it 's".
_SPLIT_CONTRACTION = re.compile(r"(?<=\w) +(?=n't\b|'(?:s|re|ve|ll|d|m)\b)")
_APOSTROPHES = str.maketrans('', '', "'’`")
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that no power of it is 0
_MAX_KNOWN_WORDS = 1_000_000


def split_normalized_words(text: str) -> list[str]:
    """Returns the words of a text in Unicode's form NFKC with folded case, without punctuation.

    Contractions are one word, also where a tokenizer has split them. Of scripts without spaces
    between words, each character is a word.
    """
    if not text.isascii():
        text = unicodedata.normalize('NFKC', text).replace('’', "'")
    text = text.casefold()
    if " '" in text or " n't" in text:
        text = _SPLIT_CONTRACTION.sub('', text)
    return _WORD.findall(text.translate(_APOSTROPHES))


class _WordHashes(dict[str, int]):
    """The hash of each word, which is computed when it is first asked for."""

    def __missing__(self, word: str) -> int:
        if len(self) > _MAX_KNOWN_WORDS:  # a bound on memory
            self.clear()
        digest = blake2b(word.encode('utf-8', 'replace'), digest_size=8).digest()
        self[word] = value = int.from_bytes(digest, 'little')
        return value


_hashes = _WordHashes()


def hash_words(text: str) -> np.ndarray:
    """Returns uint64[n], the hashes of the words of a text."""
    words = split_normalized_words(text)
    return np.fromiter(map(_hashes.__getitem__, words), np.uint64, len(words))


def iterate_windows(words_N: np.ndarray, longest: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (n, uint64[N - n + 1]) for n from 1 to `longest`: the hashes of all windows of n
    words.

    Args:
      words_N: uint64, hashes of the words.
      longest: largest number of words of a window.
    """
    power = 1
    windows: np.ndarray = np.zeros(len(words_N) + 1, np.uint64)
    for n in range(1, min(longest, len(words_N)) + 1):
        # The window of n words at i is that of n - 1 words at i, and word i + n - 1.
        windows = windows[:-1] + words_N[n - 1 :] * np.uint64(power)
        power = power * _MULTIPLIER % (1 << 64)
        yield n, windows
