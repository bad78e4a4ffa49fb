"""Reads what the losses compare the texts of pairs with (loss/targets.py)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cpt_jax.data.pairs import Pair
from cpt_jax.data.text_vectors import NO_VECTOR, TextVectors
from cpt_jax.loss.targets import Targets, TargetSizes


class PairTargets(NamedTuple):
    """The targets of a pair, small enough to be cached; None for what its source does not use.

    Attributes:
      guide: int64[T], rows of the guide's vectors.
    """

    guide: np.ndarray | None = None


class TargetReader:
    """Reads the targets of pairs.

    Attributes:
      sizes: sizes of the arrays.
      fingerprints: config key of each directory of vectors -> fingerprint of the vectors.
    """

    def __init__(self, texts_per_pair: int, names: Sequence[str], guide: TextVectors | None = None):
        """Prepares a reader.

        Args:
          texts_per_pair: T, number of texts per pair.
          names: names of the sources, in the order of the mixture.
          guide: vectors of the guide.
        """
        self._texts_per_pair = texts_per_pair
        self._names = names
        self._guide = guide
        self.sizes = TargetSizes(guide=guide.width if guide else 0)
        opened = [vectors for vectors in (guide,) if vectors]
        self.fingerprints: Mapping[str, str] = {
            vectors.key: vectors.fingerprint for vectors in opened
        }

    def find(self, source: int, pair: Pair) -> PairTargets:
        """Returns the targets of a pair.

        Args:
          source: index of its source.
          pair: the pair.

        Raises:
          UserError: a text has no vector.
        """
        return PairTargets(guide=self._find_rows(self._guide, source, pair))

    def collect(self, found: Sequence[PairTargets]) -> Targets[np.ndarray]:
        """Returns the targets of B pairs as arrays [B, ...]."""
        return Targets(guide=self._collect_vectors(self._guide, [one.guide for one in found]))

    def _find_rows(self, vectors: TextVectors | None, source: int, pair: Pair) -> np.ndarray | None:
        if vectors is None:
            return None
        where = f'data.sources.{self._names[source]}: pair {pair.id}'
        prompt_x, prompt_y = pair.prompts
        rows_T = np.full(self._texts_per_pair, NO_VECTOR)
        rows_T[0] = vectors.find_or_refuse(pair.x.removeprefix(prompt_x), 'x', where)
        others = (pair.y, *pair.negatives)[: self._texts_per_pair - 1]
        for t, text in enumerate(others, start=1):
            rows_T[t] = vectors.find_or_refuse(text.removeprefix(prompt_y), 'y', where)
        return rows_T

    def _collect_vectors(
        self, vectors: TextVectors | None, found: Sequence[np.ndarray | None]
    ) -> np.ndarray | None:
        if vectors is None:
            return None
        absent_T = np.full(self._texts_per_pair, NO_VECTOR)
        return vectors[np.stack([absent_T if rows_T is None else rows_T for rows_T in found])]
