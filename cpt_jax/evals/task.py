"""An evaluation task: it turns an embedding function into scores, next to those of baselines.

A kind of task, such as sts, is one file in tasks/ that ends with its `Kind`, and one line in
registry.py.
"""

import importlib.metadata
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from etils import epath

from cpt_jax.embed.function import Embed
from cpt_jax.evals.options import Options
from cpt_jax.evals.report.embedding_map import EmbeddingMap
from cpt_jax.evals.report.example import Example

Shared = TypeVar('Shared')


class Result(NamedTuple):
    """The scores of a task.

    Attributes:
      metric: main metric, one of `metrics`.
      metrics: the model's scores, as fractions.
      n: number of queries, sentences or pairs that the scores are of.
      settings: all that the scores depend on besides the model: protocol, data fingerprint, seed,
        library versions.
      baselines: 'bm25', 'random' or others -> some of the same metrics, of what needs no model; {}:
        there is nothing to compare with.
      examples: a few queries.
      counted: unit of n, as a plural.
      map: map of the texts, where they have labels.
    """

    metric: str
    metrics: dict[str, float]
    n: int
    settings: dict[str, object]
    baselines: dict[str, dict[str, float]] = {}
    examples: list[Example] = []
    counted: str = 'queries'
    map: EmbeddingMap | None = None

    @property
    def main_score(self) -> float:
        return self.metrics[self.metric]


class Task(ABC):
    """One benchmark. Nothing is read before one of its methods is called.

    Attributes:
      name: kind, slash and benchmark: 'retrieval/scifact'.
    """

    name: str

    @abstractmethod
    def run(self, embed: Embed) -> Result:
        """Reads the data, embeds, ranks and scores.

        Raises:
          UserError: the data cannot be used.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Returns a digest of all that the scores depend on besides the model: options and data
        (fingerprint.py). A task is measured again when its fingerprint has changed, and only then.
        """

    def check(self) -> None:  # noqa: B027 (most tasks have nothing to check early)
        """Looks for mistakes in the data that are cheap to find, before the model is loaded.

        Raises:
          UserError: the data cannot be used.
        """


@dataclass(frozen=True)
class Context:
    """What a kind may need besides the data directory and its options.

    Attributes:
      settings: settings of the model; {} before it is loaded.
      runs: directory for the rankings of --trec_runs; None: write none.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    runs: epath.Path | None = None
    _shared: dict[str, Any] = field(default_factory=dict)

    def share(self, key: str, make: Callable[[], Shared]) -> Shared:
        """Returns what the first call with this key made, so that kinds can share data and their
        vectors.
        """
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]


@dataclass(frozen=True)
class Kind:
    """A kind of task: all that the programs know of it.

    Attributes:
      name: first part of the names of its tasks: 'sts' in 'sts/STS12'.
      find: (data directory or None, options, context) -> the tasks that can be run, by name.
      layout: where data are expected in --data_dir, for the message of a task that is not there.
      folder: the same in a few words, for a list of all kinds.
      options: frozen dataclass of the options that it takes; each is a flag of launch/evaluate.py.
    """

    name: str
    find: Callable[[epath.Path | None, Any, Context], Mapping[str, Task]]
    layout: str
    folder: str
    options: type[Options] = Options


def check_is_task(task: object, name: str) -> None:
    """Raises TypeError for an object without a fingerprint, which would be measured every time."""
    if not isinstance(task, Task):
        raise TypeError(
            f'{name}: {type(task).__name__} is no subclass of evals.task.Task, which asks for a '
            f'fingerprint(): without one nobody could tell whether its scores are still valid'
        )


def library_versions(*distributions: str) -> dict[str, str]:
    """Returns the versions that a score may depend on, Python's and numpy's always among them."""
    return {'python': platform.python_version()} | {
        name: importlib.metadata.version(name) for name in ('numpy', *distributions)
    }
