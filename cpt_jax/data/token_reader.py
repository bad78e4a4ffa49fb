"""Reads the tokens of pairs, and the ids by which their texts are compared, with a cache."""

import itertools
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cpt_jax.data.equality import LATEST_RULE, NORMALIZED, TextIdentifier
from cpt_jax.data.pairs import Pair, Source, compute_content_id, spread_indices
from cpt_jax.data.positives import make_positive_ids
from cpt_jax.data.target_reader import PairTargets, TargetReader
from cpt_jax.text.prompt_tokenizer import TextTokenizer
from cpt_jax.text.tokenizer import Side, Tokenizer

# The index of a padding pair, which has no texts.
NO_PAIR = -1
# The int32 tokens of the T texts of a pair, and int32[T, Z], the ids by which they are compared.
TokensAndIds = tuple[list[np.ndarray], np.ndarray]
DEFAULT_CACHED_BYTES = 1 << 30


class ReadPair(NamedTuple):
    """A pair as it is read.

    Attributes:
      tokens: int32 ids of each of its T texts; empty if there is no text.
      ids_TxZ: int32 ids by which its texts are compared; 0 if there is no text.
      targets: what the losses compare its texts with.
    """

    tokens: list[np.ndarray]
    ids_TxZ: np.ndarray
    targets: PairTargets = PairTargets()


# Memory of a cached pair besides the arrays of its texts: entries of the cache and of lists.
_BYTES_PER_PAIR, _LIST_BYTES_PER_TEXT = 400, 48


class TokenReader(ABC):
    """Reads and tokenizes pairs by source and index, with a cache.

    Attributes:
      sources: sources of pairs, in the order of the mixture.
      tokenizer: tokenizer of all texts.
      texts_per_pair: T, number of texts per pair.
      ids_per_text: Z, number of ids by which a text is compared with others.
      tokens: number of tokens produced so far; cached pairs are not counted again.
      seconds: time spent on tokenizing so far.
      targets: reader of the pairs' targets; None if the losses need none.
      cached_bytes: memory of the cached pairs.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tokenizer: TextTokenizer,
        texts_per_pair: int,
        ids_per_text: int,
        max_cached_bytes: int,
        targets: TargetReader | None = None,
    ):
        self.targets = targets
        self.sources = sources
        self.tokenizer = tokenizer
        self.texts_per_pair = texts_per_pair
        self.ids_per_text = ids_per_text
        self.tokens = 0
        self.seconds = 0.0
        self.cached_bytes = 0
        self._max_cached_bytes = max_cached_bytes
        self._lock = threading.Lock()  # threads of the input pipeline fill the cache
        self._cache: dict[tuple[int, int], ReadPair] = {
            (i, NO_PAIR): ReadPair(*self._make_absent_pair()) for i in range(len(sources))
        }

    def _make_absent_pair(self) -> TokensAndIds:
        """Returns the empty tokens and the ids of T texts that do not exist."""
        tokens = [np.zeros(0, np.int32)] * self.texts_per_pair
        return tokens, np.zeros((self.texts_per_pair, self.ids_per_text), np.int32)

    @abstractmethod
    def encode(self, pairs: Sequence[Pair]) -> Iterator[TokensAndIds]:
        """Yields the tokens and ids of the T texts of each pair."""

    def __call__(
        self, source: int, indices: np.ndarray
    ) -> tuple[list[list[np.ndarray]], np.ndarray]:
        """Returns the tokens and the ids of pairs.

        Args:
          source: index of the source.
          indices: int[P], indices of its pairs; NO_PAIR is a pair without texts.

        Returns:
          For each pair, the int32 tokens of its T texts (empty if there is no text), and int32[P,
          T, Z], the ids by which texts are compared (0 if there is no text).
        """
        found = self.read(source, indices)
        return [pair.tokens for pair in found], np.array([pair.ids_TxZ for pair in found], np.int32)

    def read(self, source: int, indices: np.ndarray) -> list[ReadPair]:
        """Returns pairs with their targets.

        Args:
          source: index of the source.
          indices: int[P], indices of its pairs; NO_PAIR is a pair without texts.
        """
        keys = [(source, int(index)) for index in indices]
        missing = [key for key in keys if key not in self._cache]
        fresh = dict(zip(missing, self._read(missing), strict=True)) if missing else {}
        self._add_to_cache(fresh)
        return [fresh[key] if key in fresh else self._cache[key] for key in keys]

    def _add_to_cache(self, fresh: Mapping[tuple[int, int], ReadPair]) -> None:
        """Caches pairs until one does not fit into the memory of the cache."""
        with self._lock:
            for key, found in fresh.items():
                if self.cached_bytes >= self._max_cached_bytes:
                    return
                if key not in self._cache:
                    self._cache[key] = found
                    self.cached_bytes += _measure_pair(found)

    def _read(self, keys: list[tuple[int, int]]) -> list[ReadPair]:
        pairs = [self.sources[source][index] for source, index in keys]
        start = time.perf_counter()
        found = list(self.encode(pairs))
        self.seconds += time.perf_counter() - start
        self.tokens += sum(len(text) for tokens, _ in found for text in tokens)
        if self.targets is None:
            return [ReadPair(*one) for one in found]
        targets = [
            self.targets.find(source, pair) for (source, _), pair in zip(keys, pairs, strict=True)
        ]
        return [ReadPair(*one, target) for one, target in zip(found, targets, strict=True)]


def _measure_pair(pair: ReadPair) -> int:
    """Returns the memory of a cached pair, in bytes."""
    arrays = sum(sys.getsizeof(array) + _LIST_BYTES_PER_TEXT for array in pair.tokens)
    targets = sum(sys.getsizeof(array) for array in pair.targets if array is not None)
    return arrays + targets + _BYTES_PER_PAIR


class PairTokenReader(TokenReader):
    """Reads the tokens of x, y and the hard negatives of pairs, with their delimiters.

    Args:
      sources: sources of pairs, in the order of the mixture.
      tokenizer: tokenizer of all texts.
      max_tokens_x, max_tokens_y: maximum number of ids of a text, including its two delimiters;
        hard negatives have the limit of y.
      negatives: number of hard negatives per pair, the first ones. A pair that has fewer is filled
        up with empty texts.
      equal_texts: rule by which texts are compared, one of EQUALITY_RULES (data/equality.py).
      max_cached_bytes: memory above which no further pair is cached.
      targets: reader of the pairs' targets; None if the losses need none.

    If an x of some source has other positives, texts have the ids of `make_positive_ids` too.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tokenizer: TextTokenizer,
        max_tokens_x: int,
        max_tokens_y: int,
        negatives: int,
        equal_texts: str = LATEST_RULE,
        max_cached_bytes: int = DEFAULT_CACHED_BYTES,
        targets: TargetReader | None = None,
    ):
        self._max_tokens: dict[Side, int] = {'x': max_tokens_x, 'y': max_tokens_y}
        self._identifier = TextIdentifier(equal_texts, tokenizer, self._max_tokens)
        self._most_positives = 0
        if equal_texts == NORMALIZED:
            # Only some kinds of sources know the positives of other pairs.
            counts = (getattr(source, 'most_positives', 0) for source in sources)
            self._most_positives = max(counts, default=0)
        ids_per_text = self._identifier.ids_per_text + self._most_positives
        texts_per_pair = 2 + negatives
        super().__init__(
            sources, tokenizer, texts_per_pair, ids_per_text, max_cached_bytes, targets
        )
        self._negatives = negatives

    def encode(self, pairs: Sequence[Pair]) -> Iterator[TokensAndIds]:
        texts_of_x = [(pair.x, pair.prompts[0]) for pair in pairs]
        others = [[pair.y, *pair.negatives[: self._negatives]] for pair in pairs]
        prompts_of_y = [pair.prompts[1] for pair in pairs]
        texts_of_y = [
            (text, prompt)
            for texts, prompt in zip(others, prompts_of_y, strict=True)
            for text in texts
        ]
        encoded_x = self._encode_side('x', texts_of_x)
        encoded_y = self._encode_side('y', texts_of_y)
        for pair, x, texts in zip(pairs, encoded_x, others, strict=True):
            tokens, ids_TxZ = self._make_absent_pair()
            for t, encoded in enumerate([x, *itertools.islice(encoded_y, len(texts))]):
                tokens[t], ids_TxZ[t, : self._identifier.ids_per_text] = encoded
            if most := self._most_positives:
                plain = [text.removeprefix(pair.prompts[1]) for text in texts]
                ids_TxZ[: 1 + len(texts), -most:] = make_positive_ids(plain, pair.positives, most)
            yield tokens, ids_TxZ

    def _encode_side(
        self, side: Side, prompted: Sequence[tuple[str, str]]
    ) -> Iterator[tuple[np.ndarray, list[int]]]:
        """Yields the tokens and ids of each text.

        Args:
          side: side of the texts.
          prompted: each text, and the prompt with which it begins.
        """
        texts = [text for text, _ in prompted]
        prompts = [prompt for _, prompt in prompted]
        tokens = self.tokenizer.encode(texts, side, self._max_tokens[side])
        yield from zip(tokens, self._identifier.identify(texts, tokens, side, prompts), strict=True)


class DocumentTokenReader(TokenReader):
    """Reads the tokens of texts for a language model; each pair has one text, its x.

    Args:
      sources: sources of texts (data/sources/documents.py), in the order of the mixture.
      tokenizer: tokenizer with BOS and EOS.
      max_tokens: maximum number of ids of a text; longer texts are truncated.
      max_cached_bytes: memory above which no further text is cached.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tokenizer: Tokenizer,
        max_tokens: int,
        max_cached_bytes: int = DEFAULT_CACHED_BYTES,
    ):
        # Texts are not compared: an id only says that there is a text.
        super().__init__(sources, tokenizer, 1, 1, max_cached_bytes)
        self._encode = tokenizer.encode_language
        self._max_tokens = max_tokens

    def encode(self, pairs: Sequence[Pair]) -> Iterator[TokensAndIds]:
        texts = [pair.x for pair in pairs]
        encoded = self._encode(texts, self._max_tokens)
        for text, tokens in zip(texts, encoded, strict=True):
            yield [tokens], np.array([[compute_content_id(text)]], np.int32)


def sample_lengths(reader: TokenReader, source: int, sample: int) -> np.ndarray:
    """Returns int[P, T]: the text lengths, in tokens, of up to `sample` pairs spread evenly over a
    source.
    """
    tokens, _ = reader(source, spread_indices(len(reader.sources[source]), sample))
    return np.array([[len(text) for text in pair] for pair in tokens])
