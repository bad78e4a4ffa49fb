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
      scores: float32[T - 1], scores of y and of each hard negative.
      teacher: int64[T], rows of the teacher's vectors.
    """

    guide: np.ndarray | None = None
    scores: np.ndarray | None = None
    teacher: np.ndarray | None = None


class Wanted(NamedTuple):
    """The targets that a source's loss uses.

    Attributes:
      name: name of the source.
      guide, scores, teacher: whether it uses them.
    """

    name: str
    guide: bool = False
    scores: bool = False
    teacher: bool = False


class TargetReader:
    """Reads the targets of pairs.

    Attributes:
      sizes: sizes of the arrays.
      fingerprints: config key of each directory of vectors -> fingerprint of the vectors.
    """

    def __init__(
        self,
        texts_per_pair: int,
        wanted: Sequence[Wanted],
        guide: TextVectors | None = None,
        teacher: TextVectors | None = None,
    ):
        """Prepares a reader.

        Args:
          texts_per_pair: T, number of texts per pair.
          wanted: targets of each source, in the order of the mixture.
          guide: vectors of the guide.
          teacher: vectors of the teacher.
        """
        self._texts_per_pair = texts_per_pair
        self._wanted = wanted
        self._guide = guide
        self._teacher = teacher
        self.sizes = TargetSizes(
            guide=guide.width if guide else 0,
            scores=texts_per_pair - 1 if any(one.scores for one in wanted) else 0,
            teacher=teacher.width if teacher else 0,
        )
        opened = [vectors for vectors in (guide, teacher) if vectors]
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
        wanted = self._wanted[source]
        where = f'data.sources.{wanted.name}: pair {pair.id}'
        guide = teacher = scores_U = None
        if wanted.guide and self._guide:
            guide = self._find_rows(self._guide, pair, where)
        if wanted.teacher and self._teacher:
            teacher = self._find_rows(self._teacher, pair, where)
        if wanted.scores:
            scores_U = np.zeros(self._texts_per_pair - 1, np.float32)
            given = pair.scores[: len(scores_U)]
            scores_U[: len(given)] = given
        return PairTargets(guide, scores_U, teacher)

    def collect(self, found: Sequence[PairTargets]) -> Targets[np.ndarray]:
        """Returns the targets of B pairs as arrays [B, ...]."""
        scores_BxU = None
        if self.sizes.scores:
            absent_U = np.zeros(self.sizes.scores, np.float32)
            scores_BxU = np.stack([absent_U if one.scores is None else one.scores for one in found])
        return Targets(
            self._collect_vectors(self._guide, [one.guide for one in found]),
            scores_BxU,
            self._collect_vectors(self._teacher, [one.teacher for one in found]),
        )

    def _find_rows(self, vectors: TextVectors, pair: Pair, where: str) -> np.ndarray:
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
