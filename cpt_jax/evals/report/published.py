"""Published results for the tasks of this package, with the source of every number. They are stored
in published.json, next to this file.

Numbers are as printed: fractions x100. The tables of the cpt paper (arXiv 2201.10005) are images in
the copies that we could read, so most of its numbers come from papers and pages that copy them.
Numbers that we could not verify are left out rather than quoted from memory.

In published.json, a table has these keys:

  title, notes: texts for the report.
  scores: rows of the table: a suite and a metric (its tasks and their mean), or a list of (task,
    metric).
  measured: settings that must be equal for a comparison.
  sizes: further such settings for each task. `sizes_source` is their source.
  models: groups of columns.

A column is a string with one cell per row: '-' for no number, or a number. The source of a number
is the `mark` of its group, unless a letter of `MARKS` follows the number.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from cpt_jax.evals.suites import SUITES

PATH = Path(__file__).with_suffix('.json')

# Mark of a number -> its source.
MARKS = {
    'P': 'the text of the paper itself',
    'C': 'code, README or data of the official repository',
    'T': 'a table or page by others that copies or cites the paper',
    'D': 'computed from other published numbers',
}


class TaskMetric(NamedTuple):
    """A metric of a task, with the names of results.json."""

    task: str
    metric: str


class PublishedNumber(NamedTuple):
    """A published number.

    Attributes:
      printed: number as printed, x100.
      mark: its source, a key of `MARKS`.
    """

    printed: str
    mark: str


class PublishedModel(NamedTuple):
    """The published results of one model.

    Attributes:
      group: heading of several models, such as 'cpt-text, unsupervised'.
      name: name within the group, such as 'XL'.
      source: published table, and where we read it.
      cells: known numbers, by metric.
    """

    group: str
    name: str
    source: str
    cells: Mapping[TaskMetric, PublishedNumber]


class RoundedCount(NamedTuple):
    """A count that is rounded in its source, such as 5K."""

    about: int

    def __str__(self) -> str:
        return f'about {self.about:,}'


class AlternativeCounts(NamedTuple):
    """The possible values of a count, one for each release of the data, if a publication does not
    say which release it used.
    """

    counts: tuple[int, ...]

    def __str__(self) -> str:
        return ' or '.join(f'{count:,}' for count in self.counts)


class Table(NamedTuple):
    """Published results for one family of tasks.

    Attributes:
      title: title, including the metric if all rows have the same metric.
      scores: rows. The score of a suite is the mean of its tasks.
      models: columns.
      measured: name of a setting -> value that is required for a comparison; 'n' is the number of
        scored items.
      sizes: task -> further required values for this task.
      notes: known differences to the scores of this package, and unknown details.
    """

    title: str
    scores: tuple[TaskMetric, ...]
    models: tuple[PublishedModel, ...]
    measured: Mapping[str, object] = {}
    sizes: Mapping[str, Mapping[str, object]] = {}
    notes: str = ''


@cache
def read_tables() -> dict[str, Table]:
    """Returns the tables of published.json by key."""
    content = json.loads(PATH.read_text('utf-8'))
    return {key: parse_table(table) for key, table in content.items()}


def parse_table(table: Mapping[str, Any]) -> Table:
    """Returns a table from its JSON object in published.json.

    Raises:
      ValueError: a column does not have one cell per row.
    """
    scores = _parse_scores(table['scores'])
    sizes = {
        task: {key: _parse_size(value) for key, value in facts.items()}
        for task, facts in table['sizes'].items()
    }
    groups = [parse_group(scores, group) for group in table['models']]
    models = tuple(model for group in groups for model in group)
    return Table(table['title'], scores, models, table['measured'], sizes, table.get('notes', ''))


def parse_group(scores: Sequence[TaskMetric], group: Mapping[str, Any]) -> list[PublishedModel]:
    """Returns the columns of a group."""
    models = []
    for name, column in group['rows'].items():
        cells = _parse_cells(scores, group['mark'], column.split())
        models.append(PublishedModel(group['group'], name, group['source'], cells))
    return models


def make_suite_scores(metric: str, suite: str) -> tuple[TaskMetric, ...]:
    """Returns the scores of the tasks of a suite, and the score of their mean."""
    return tuple(TaskMetric(task, metric) for task in (*SUITES[suite].tasks, suite))


def _parse_scores(scores: Mapping[str, str] | Sequence[Sequence[str]]) -> tuple[TaskMetric, ...]:
    if isinstance(scores, Mapping):
        return make_suite_scores(scores['metric'], scores['suite'])
    return tuple(TaskMetric(task, metric) for task, metric in scores)


def _parse_size(value: Any) -> object:
    if isinstance(value, dict) and value.keys() == {'about'}:
        return RoundedCount(value['about'])
    if isinstance(value, dict) and value.keys() == {'one_of'}:
        return AlternativeCounts(tuple(value['one_of']))
    return value


def _parse_cells(
    scores: Sequence[TaskMetric], mark: str, texts: list[str]
) -> dict[TaskMetric, PublishedNumber]:
    """Returns the cells of a column; `mark` is the source of numbers without a letter."""
    cells = {}
    for score, text in zip(scores, texts, strict=True):
        if text != '-':
            own_mark = text[-1] if text[-1] in MARKS else mark
            cells[score] = PublishedNumber(text.rstrip(''.join(MARKS)), own_mark)
    return cells
