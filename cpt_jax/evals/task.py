"""The interface of evaluation tasks.

A task computes the scores of an embedding function and of baselines.

A kind of task, such as sts, is one file in tasks/ that ends with its `TaskKind`, and one line in
registry.py.
"""

import importlib.metadata
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
from etils import epath

from cpt_jax.embed.function import Embed
from cpt_jax.evals.intervals.item_scores import ItemScores
from cpt_jax.evals.options import Options
from cpt_jax.evals.report.embedding_map import EmbeddingMap
from cpt_jax.evals.report.example import Example

Shared = TypeVar('Shared')


class Result(NamedTuple):
    """The scores of a task.

    Attributes:
      metric: name of the main metric, a key of `metrics`.
      metrics: scores of the model, as fractions.
      n: number of scored queries, sentences or pairs.
      settings: everything that the scores depend on besides the model: protocol, data fingerprint,
        seed, library versions.
      baselines: name of a baseline ('bm25', 'random') -> its scores on some of the metrics; {} if
        there are no baselines.
      examples: example queries for the report.
      counted: what `n` counts, as a plural noun such as 'pairs'.
      map: map of the embeddings; None if the texts have no labels.
      warnings: what is wrong with the data although they can be used.
      item_scores: scores of single queries, pairs or sentences, for intervals; None if they are not
        known.
      baseline_values: name of a baseline -> metric -> float64 [N], its scores of the queries of
        `item_scores`, for the intervals of baselines.
    """

    metric: str
    metrics: dict[str, float]
    n: int
    settings: dict[str, object]
    baselines: dict[str, dict[str, float]] = {}
    examples: list[Example] = []
    counted: str = 'queries'
    map: EmbeddingMap | None = None
    warnings: tuple[str, ...] = ()
    item_scores: ItemScores | None = None
    baseline_values: Mapping[str, dict[str, np.ndarray]] = {}

    @property
    def main_score(self) -> float:
        """Score on the main metric."""
        return self.metrics[self.metric]


class Task(ABC):
    """One benchmark. Data are read only when a method is called.

    Attributes:
      name: kind and benchmark, separated by a slash, such as 'retrieval/scifact'.
    """

    name: str

    @abstractmethod
    def run(self, embed: Embed) -> Result:
        """Returns the scores of an embedding function.

        Raises:
          UserError: the data cannot be used.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Returns a hash of everything that the scores depend on besides the model: options and
        data (fingerprint.py). A task is scored again only if its fingerprint has changed.
        """

    def check(self) -> None:  # noqa: B027 (most tasks have no cheap checks)
        """Runs cheap checks of the data, before the model is loaded.

        Raises:
          UserError: the data cannot be used.
        """


@dataclass(frozen=True)
class Context:
    """What kinds of tasks need besides data and options: model settings, output, shared data.

    Attributes:
      settings: settings of the model; {} if it is not loaded yet.
      runs: directory for the rankings of --trec_runs; None writes no rankings.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    runs: epath.Path | None = None
    _shared: dict[str, Any] = field(default_factory=dict)

    def get_or_make(self, key: str, make: Callable[[], Shared]) -> Shared:
        """Returns the object cached for `key`, or makes and caches it.

        Kinds of tasks use it to share data and embeddings.
        """
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]


@dataclass(frozen=True)
class TaskKind:
    """A kind of task: its name, its options and how its tasks are found.

    Attributes:
      name: first part of the task names: 'sts' in 'sts/STS12'.
      find: function from (data directory or None, options, context) to the available tasks by name.
      layout: layout of the data in --data_dir, for messages about missing tasks.
      folder: short form of `layout`, for messages that list all kinds.
      options: frozen dataclass of the options. Each option is a flag of launch/evaluate.py.
    """

    name: str
    find: Callable[[epath.Path | None, Any, Context], Mapping[str, Task]]
    layout: str
    folder: str
    options: type[Options] = Options


def check_is_task(task: object, name: str) -> None:
    """Raises TypeError unless `task` is a Task, which guarantees that it has a fingerprint."""
    if not isinstance(task, Task):
        raise TypeError(
            f'{name}: {type(task).__name__} must be a subclass of evals.task.Task and define '
            f'fingerprint(), which decides whether earlier scores are still valid'
        )


def read_library_versions(*distributions: str) -> dict[str, str]:
    """Returns the versions of Python, numpy and `distributions`, which scores may depend on."""
    return {'python': platform.python_version()} | {
        name: importlib.metadata.version(name) for name in ('numpy', *distributions)
    }
