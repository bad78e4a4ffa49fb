"""What a task is: it turns an embedding function into scores, beside those of BM25 and of random vectors."""

import importlib.metadata
import platform
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

# All that evaluation sees of a model: texts and a side ('x' queries, 'y' documents) -> float32 unit vectors [n, D].
Embed = Callable[[Sequence[str], str], np.ndarray]

EXAMPLES = 10  # queries that the report shows for each task
SHOWN = 3  # answers that it shows for each query
SHOWN_CHARACTERS = 1_500  # of a text; keeps the report small where documents are long


class Found(NamedTuple):
    """One answer to a query: its text, its score and whether it is right."""

    text: str
    score: float
    right: bool


class Answers(NamedTuple):
    """What one ranking gives for a query: its best answers, and the rank of the first right one (None: not among those kept)."""

    found: list[Found]
    rank: int | None


class Example(NamedTuple):
    """A query for people to look at, a right answer to it, and what the model and BM25 find."""

    query: str
    right: str
    model: Answers
    bm25: Answers


class Plane(NamedTuple):
    """Where the points are.

    Attributes:
      method: 'PCA' or 'UMAP'.
      x, y: whole numbers from 0, y downwards.
      explained: of PCA the share of the points' variance along x and along y.
    """

    method: str
    x: list[int]
    y: list[int]
    explained: list[float]


class EmbeddingMap(NamedTuple):
    """A sample of a set of labelled texts as points, in one plane or more.

    Attributes:
      name: of the set and its part: 'SST2, test'.
      of: how many texts the set has.
      classes: their names.
      labels: class of each point.
      texts: of each point, cut where it is long.
    """

    name: str
    of: int
    classes: list[str]
    labels: list[int]
    texts: list[str]
    planes: list[Plane]


class Result(NamedTuple):
    """What a task gives.

    Attributes:
      metric: the metric of `metrics` that stands for the task.
      metrics: the model's scores, as fractions.
      n: how many queries, sentences or pairs the scores are of.
      settings: all that the scores depend on besides the model: protocol, data fingerprint, seed, library versions.
      baselines: 'bm25', 'random' or others -> some of the same metrics, of what needs no model; {}: there is nothing to compare with.
      examples: a few queries.
      counted: what n counts.
      map: of the texts, where they have labels.
    """

    metric: str
    metrics: dict[str, float]
    n: int
    settings: dict[str, object]
    baselines: dict[str, dict[str, float]] = {}
    examples: list[Example] = []  # noqa: RUF012 (neither is ever changed)
    counted: str = 'queries'
    map: EmbeddingMap | None = None

    @property
    def main_score(self) -> float:
        return self.metrics[self.metric]


class Task(Protocol):
    """One benchmark, such as 'retrieval/scifact'. Nothing is read before `run`."""

    name: str

    def run(self, embed: Embed) -> Result:
        """Reads the data, embeds, ranks and scores; raises UserError for data that cannot be used."""


def library_versions(*distributions: str) -> dict[str, str]:
    """The versions that a score may depend on, Python's and numpy's always among them."""
    return {'python': platform.python_version()} | {name: importlib.metadata.version(name) for name in ('numpy', *distributions)}


def shown(text: str) -> str:
    """A text as the report keeps it: cut where it is long."""
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + ' …'
