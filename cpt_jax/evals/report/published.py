"""Published results for the tasks that are scored here, from published.json next to this file, with
the provenance of every number.

Numbers are as printed: fractions x100. The tables of the cpt paper (arXiv 2201.10005) are images in
the copies that could be read, so most of its numbers come from others that copy them; those that
were found nowhere are left out rather than quoted from memory.

In published.json a table has a title, notes, its rows (`scores`: a metric of all tasks of a suite
and of their mean, or pairs of task and metric), what must be `measured` alike for a comparison, the
`sizes` of tasks and where these are from, and its columns (`models`). A column is a string with a
cell for each row: '-' for none, and a letter of `MARKS` after a number that was seen elsewhere than
the `mark` of its group says.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from cpt_jax.evals.suites import SUITES

PATH = Path(__file__).with_suffix('.json')

# Where a number was seen.
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
    """A number as printed, x100, and one of `MARKS`."""

    printed: str
    mark: str


class Model(NamedTuple):
    """The published results of one model.

    Attributes:
      group: heading above several models: 'cpt-text, unsupervised'.
      name: name within the group: 'XL'.
      source: the table, and where it was read.
      figures: the results that were found.
    """

    group: str
    name: str
    source: str
    figures: Mapping[Score, Figure]


class Roughly(NamedTuple):
    """A count that a source rounds: 5K."""

    about: int

    def __str__(self) -> str:
        return f'about {self.about:,}'


class OneOf(NamedTuple):
    """Counts of releases of the same data, where a source does not say which one it has."""

    counts: tuple[int, ...]

    def __str__(self) -> str:
        return ' or '.join(f'{count:,}' for count in self.counts)


class Table(NamedTuple):
    """Published results for one family of tasks.

    Attributes:
      title: title, with the metric where all have the same.
      scores: rows; for a suite the mean of its tasks.
      models: columns.
      measured: setting ('n': number of scored items) -> its value in comparable scores.
      sizes: task -> the same for that task alone.
      notes: what differs, or is unknown, however a task is measured here.
    """

    title: str
    scores: tuple[Score, ...]
    models: tuple[Model, ...]
    measured: Mapping[str, object] = {}
    sizes: Mapping[str, Mapping[str, object]] = {}
    notes: str = ''


@cache
def read_tables() -> dict[str, Table]:
    """Returns the tables of published.json by key."""
    content = json.loads(PATH.read_text('utf-8'))
    return {key: parse_table(table) for key, table in content.items()}


def parse_table(table: Mapping[str, Any]) -> Table:
    """Returns a table from its form in published.json. Raises ValueError where a column has more or
    fewer cells than there are rows.
    """
    scores = _parse_scores(table['scores'])
    sizes = {
        task: {key: _parse_size(value) for key, value in facts.items()}
        for task, facts in table['sizes'].items()
    }
    groups = [parse_group(scores, group) for group in table['models']]
    models = tuple(model for group in groups for model in group)
    return Table(table['title'], scores, models, table['measured'], sizes, table.get('notes', ''))


def parse_group(scores: Sequence[Score], group: Mapping[str, Any]) -> list[Model]:
    """Returns the columns of a group."""
    return [
        Model(group['group'], name, group['source'], _figures(scores, group['mark'], cells.split()))
        for name, cells in group['rows'].items()
    ]


def scores_of(metric: str, suite: str) -> tuple[Score, ...]:
    """Returns a score for each task of a suite, and one for their mean."""
    return tuple(Score(task, metric) for task in (*SUITES[suite].tasks, suite))


def _parse_scores(scores: Mapping[str, str] | Sequence[Sequence[str]]) -> tuple[Score, ...]:
    if isinstance(scores, Mapping):
        return scores_of(scores['metric'], scores['suite'])
    return tuple(Score(task, metric) for task, metric in scores)


def _parse_size(value: Any) -> object:
    if isinstance(value, dict) and value.keys() == {'about'}:
        return Roughly(value['about'])
    if isinstance(value, dict) and value.keys() == {'one_of'}:
        return OneOf(tuple(value['one_of']))
    return value


def _figures(scores: Sequence[Score], mark: str, cells: list[str]) -> dict[Score, Figure]:
    pairs = [(score, cell) for score, cell in zip(scores, cells, strict=True) if cell != '-']
    return {
        score: Figure(cell.rstrip(''.join(MARKS)), cell[-1] if cell[-1] in MARKS else mark)
        for score, cell in pairs
    }
