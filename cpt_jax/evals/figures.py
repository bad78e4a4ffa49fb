"""Figures that papers print, with their provenance, and what a score must be of to stand beside them."""

from collections.abc import Mapping
from typing import NamedTuple

from cpt_jax.evals.suites import SUITES

# Where a figure was seen.
MARKS = {
    'P': 'in the text of the paper itself',
    'C': 'in the code, README or data of its official repository',
    'T': 'in a table or page of others that copies or cites it',
    'D': 'nowhere: computed from figures that were seen',
}


class Score(NamedTuple):
    """A metric of a task, as results.json names them."""

    task: str
    metric: str


class Figure(NamedTuple):
    """A figure as printed, x100, and one of `MARKS`."""

    printed: str
    mark: str


class Model(NamedTuple):
    """What is printed of one model.

    Attributes:
      group: models that stand beside each other: 'cpt-text, unsupervised'.
      name: within the group: 'XL'.
      source: the table, and where it was read.
      figures: those that were found.
    """

    group: str
    name: str
    source: str
    figures: Mapping[Score, Figure]


class Roughly(NamedTuple):
    """A count that a source rounds: 5K."""

    count: int

    def __str__(self) -> str:
        return f'about {self.count:,}'


class OneOf(NamedTuple):
    """Counts of releases of the same data, of which a source does not say which it has."""

    counts: tuple[int, ...]

    def __str__(self) -> str:
        return ' or '.join(f'{count:,}' for count in self.counts)


class Table(NamedTuple):
    """Figures of one family of tasks.

    Attributes:
      title: with the metric where all have the same.
      scores: its rows; of a suite the mean of the tasks.
      models: its columns.
      measured: setting ('n': how many are scored) -> what it must be for a score to be comparable.
      sizes: task -> the same of that task alone.
      notes: what is unlike, or unknown, however it is measured here.
    """

    title: str
    scores: tuple[Score, ...]
    models: tuple[Model, ...]
    measured: Mapping[str, object] = {}
    sizes: Mapping[str, Mapping[str, object]] = {}
    notes: str = ''


def scores_of(metric: str, suite: str) -> tuple[Score, ...]:
    """Of the tasks of a suite, and of their mean."""
    return tuple(Score(task, metric) for task in (*SUITES[suite].tasks, suite))


def models(scores: tuple[Score, ...], mark: str, group: str, source: str, rows: Mapping[str, str]) -> tuple[Model, ...]:
    """Models from rows as papers print them: a cell for each of `scores`, '-' for none, a letter of `MARKS` behind one that has another."""
    return tuple(Model(group, name, source, _figures(scores, mark, cells.split())) for name, cells in rows.items())


def _figures(scores: tuple[Score, ...], mark: str, cells: list[str]) -> dict[Score, Figure]:
    pairs = [(score, cell) for score, cell in zip(scores, cells, strict=True) if cell != '-']
    return {score: Figure(cell.rstrip(''.join(MARKS)), cell[-1] if cell[-1] in MARKS else mark) for score, cell in pairs}
