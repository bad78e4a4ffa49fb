"""The scores of single queries, sentences or pairs, from which intervals and paired differences are
computed.

OUTPUT/scores/<task>.npz
  kind     'queries' (of classification: test sentences) or 'pairs'
  items    digest of the queries or pairs; two models are compared only on the same ones
  score    the main score in results.json, to which the file belongs
  queries: an array float64 [N] for each metric, whose score is the mean
  pairs:   cosines float32 [N], gold float64 [N], and the sizes of the subsets
"""

import io
import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from cpt_jax.evals.intervals.bootstrap import (
    SEED,
    compute_interval,
    draw_correlations,
    draw_means,
)
from cpt_jax.storage.atomic_write import write_atomically
from cpt_jax.storage.paths import as_path

FOLDER = 'scores'
# Keys of a file that are not metrics.
_KIND, _ITEMS, _SCORE = 'kind', 'items', 'score'


class QueryScores(NamedTuple):
    """Scores of each query or test sentence. The score of a metric is their mean.

    Attributes:
      items: digest of the queries and their right answers.
      values: metric -> float64 [N].
    """

    items: str
    values: dict[str, np.ndarray]

    @property
    def n(self) -> int:
        """Number of queries."""
        return len(next(iter(self.values.values())))

    def draw_scores(self) -> dict[str, np.ndarray]:
        """Returns metric -> float64 [draws], the scores of all resamples of the queries."""
        drawn_DxM = draw_means(np.stack([*self.values.values()], axis=1))
        return dict(zip(self.values, drawn_DxM.T, strict=True))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays to store."""
        return {_KIND: np.array('queries'), _ITEMS: np.array(self.items), **self.values}


class PairScores(NamedTuple):
    """Cosines of pairs with human scores. A score is a correlation between them.

    Attributes:
      items: digest of the pairs and their human scores.
      cosines_N: float32, cosines of all subsets.
      gold_N: float64, human scores.
      sizes: number of pairs of each subset, in order.
    """

    items: str
    cosines_N: np.ndarray
    gold_N: np.ndarray
    sizes: Sequence[int]

    @property
    def n(self) -> int:
        """Number of pairs."""
        return len(self.cosines_N)

    def draw_scores(self) -> dict[str, np.ndarray]:
        """Returns metric -> float64 [draws].

        Spearman and Pearson resample all pairs. The means over subsets resample the pairs of each
        subset, so that each subset keeps its size.
        """
        spearman_D, pearson_D = draw_correlations(self.cosines_N, self.gold_N).T
        drawn = {'spearman': spearman_D, 'pearson': pearson_D}
        if len(self.sizes) > 1:
            each_SxD = [
                draw_correlations(*pair, seed=SEED + 1 + subset)[:, 0]
                for subset, pair in enumerate(self._split())
            ]
            drawn['spearman_mean'] = np.mean(each_SxD, axis=0)
            drawn['spearman_wmean'] = np.average(each_SxD, axis=0, weights=self.sizes)
        return drawn

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays to store."""
        return {
            _KIND: np.array('pairs'),
            _ITEMS: np.array(self.items),
            'cosines': self.cosines_N,
            'gold': self.gold_N,
            'sizes': np.array(self.sizes),
        }

    def _split(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns cosines and human scores of each subset."""
        ends = np.cumsum(self.sizes)[:-1]
        return list(zip(np.split(self.cosines_N, ends), np.split(self.gold_N, ends), strict=True))


ItemScores = QueryScores | PairScores


def draw_mean_score(tasks: Sequence[ItemScores], metric: str) -> np.ndarray:
    """Returns float64 [draws]: the mean of a metric of several tasks in resamples of the queries or
    pairs of each.
    """
    # Tasks with as many items draw the same ones; in another order their draws are independent.
    drawn = [
        np.random.default_rng(index).permutation(scores.draw_scores()[metric])
        for index, scores in enumerate(tasks)
    ]
    return np.mean(drawn, axis=0)


def compute_intervals(scores: ItemScores) -> dict[str, list[float]]:
    """Returns metric -> [lower, upper] bound of its interval."""
    return {metric: [*compute_interval(drawn)] for metric, drawn in scores.draw_scores().items()}


def make_scores_path(output: epath.Path, task: str) -> epath.Path:
    """Returns the path of a task's file in the directory of the results."""
    return output / FOLDER / f'{task}.npz'


def write_item_scores(output: epath.Path, task: str, scores: ItemScores, main_score: float) -> None:
    """Writes the scores of a task beside results.json."""
    content = io.BytesIO()
    np.savez_compressed(content, **scores.to_arrays(), **{_SCORE: np.array(main_score)})  # type: ignore[arg-type]
    path = make_scores_path(output, task)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(as_path(path), content.getvalue())


def remove_item_scores(output: epath.Path) -> None:
    """Removes the scores of all tasks, which belong to another model."""
    folder = output / FOLDER
    if folder.exists():
        folder.rmtree()


def read_item_scores(output: epath.Path, task: str, main_score: float) -> ItemScores | None:
    """Returns the scores of a task; None if the file is missing, damaged or of another evaluation.

    Args:
      output: directory of the results.
      task: task name.
      main_score: main score of the task in results.json.
    """
    path = make_scores_path(output, task)
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        kind, items = (str(arrays.pop(name)) for name in (_KIND, _ITEMS))
        if float(arrays.pop(_SCORE)) != main_score:
            return None
        if kind == 'queries':
            return QueryScores(items, arrays)
        return PairScores(items, arrays['cosines'], arrays['gold'], arrays['sizes'].tolist())
    except Exception as error:  # a wrong bit can raise almost anything, see storage/cache.py
        logging.warning('%s cannot be read (%s): score the task again with --again', path, error)
        return None
