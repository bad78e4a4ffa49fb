"""The held-out scores of a run: which checkpoint is the best, and when training stops early."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils


class MainScore(NamedTuple):
    """The held-out score that decides which checkpoint is the best.

    Attributes:
      key: its key in metrics.jsonl.
      name: its name in messages.
      sign: 1 if higher is better, -1 if lower is better.
    """

    key: str
    name: str
    sign: int


class HeldoutScores:
    """The held-out scores of a run in the order of their steps, from step 0 on.

    Attributes:
      main: the score that is compared.
      patience: number of evaluations without a better score after which training stops; 0: never.
      steps: the evaluated steps.
      values: the score after each of these steps.
    """

    def __init__(
        self,
        main: MainScore,
        patience: int,
        rows: Iterable[Mapping[str, float]] = (),
        kept: Iterable[int] | None = None,
    ):
        """Takes the scores of an earlier start.

        Args:
          main: see above.
          patience: see above.
          rows: rows of metrics.jsonl; those of process 0 count.
          kept: steps of `rows` that can be the best, those with a checkpoint; None: all.
        """
        self.main = main
        self.patience = patience
        found = [(row['step'], row[main.key]) for row in rows if main.key in row]
        scores_Nx2 = _broadcast(np.array(found, np.float64).reshape(-1, 2))
        self.steps: list[int] = [int(step) for step in scores_Nx2[:, 0]]
        self.values: list[float] = scores_Nx2[:, 1].tolist()
        self._candidates = set(self.steps if kept is None else kept)

    def add(self, step: int, scores: Mapping[str, float]) -> None:
        """Adds the scores of an evaluation.

        Args:
          step: the evaluated step.
          scores: its scores, by column.
        """
        # All processes must decide alike, and sums may differ in the last digit between them.
        ((_, value),) = _broadcast(np.array([[step, scores[self.main.key]]]))
        self.steps.append(step)
        self.values.append(float(value))
        self._candidates.add(step)

    @property
    def signed(self) -> dict[int, float]:
        """The scores by step, with the sign that makes higher ones better."""
        return {
            step: self.main.sign * value
            for step, value in zip(self.steps, self.values, strict=True)
        }

    @property
    def best_step(self) -> int | None:
        """The step with the best score, the latest one of equal scores; None without a score. Step
        0, of which there is no checkpoint, is left out.
        """
        trained = [
            (self.main.sign * value, step)
            for step, value in zip(self.steps, self.values, strict=True)
            if step > 0 and step in self._candidates
        ]
        return max(trained)[1] if trained else None

    @property
    def should_stop(self) -> bool:
        """Whether the last `patience` scores are not better than the best one before them."""
        if not self.patience or len(self.values) <= self.patience:
            return False
        signed = [self.main.sign * value for value in self.values]
        return max(signed[-self.patience :]) <= max(signed[: -self.patience])

    def get(self, step: int) -> float:
        """Returns the score after a step."""
        return self.values[self.steps.index(step)]

    def describe(self) -> str:
        """Returns the first and the last score, and the best one if it is another; '' if there are
        fewer than two.
        """
        if len(self.values) < 2:
            return ''
        text = f'held-out {self.main.name} {self.values[0]:.3f} -> {self.values[-1]:.3f}'
        best = self.best_step
        if best is not None and best != self.steps[-1]:
            text += f', best {self.get(best):.3f} at step {best:,}'
        if best is not None and self.main.sign * (self.get(best) - self.values[0]) < 0:
            text += ', never better than at the start'
        return text


def _broadcast(scores_Nx2: np.ndarray) -> np.ndarray:
    """Returns process 0's scores on all processes."""
    if jax.process_count() == 1:
        return scores_Nx2
    # All processes must give arrays of the same size, so the size is exchanged first. Arrays are
    # exchanged in 32 bits; halves of a float64 keep all of its digits.
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(scores_Nx2))))
    if not count:
        return np.zeros((0, 2))
    mine = scores_Nx2 if jax.process_index() == 0 else np.zeros((count, 2))
    halves = multihost_utils.broadcast_one_to_all(mine.view(np.uint32))
    return np.asarray(halves, np.uint32).view(np.float64)
