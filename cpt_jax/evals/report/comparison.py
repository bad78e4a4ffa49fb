"""Tables that compare our scores with published results of other models, one per family of tasks.

Scores that were measured differently are never compared.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby
from typing import NamedTuple

from cpt_jax.evals.report.published import (
    AlternativeCounts,
    PublishedNumber,
    RoundedCount,
    Table,
    TaskMetric,
)
from cpt_jax.evals.store.results import BASELINES, format_score, label_metric
from cpt_jax.evals.suites import SUITES

MAX_SETTING_CHARACTERS = 40  # longer settings are cut in the reason for excluding a task


class ComparisonRow(NamedTuple):
    """One row of a comparison.

    Attributes:
      task: name of the task or suite.
      metric: label of the metric.
      counted: number of scored items, with their unit.
      here: our scores, one for each column of `Comparison.here`; '' for none.
      printed: published numbers, one for each column of `Comparison.names`.
    """

    task: str
    metric: str
    counted: str
    here: list[str]
    printed: list[PublishedNumber | None]

    @property
    def is_mean(self) -> bool:
        """Whether the row is the mean of a suite."""
        return self.task in SUITES


class Comparison(NamedTuple):
    """A table of the report.

    Attributes:
      title: title of the published table.
      notes: notes of the published table.
      here: headings of our columns: the model and its baselines.
      groups: (name, number of columns) of each group of published columns.
      names: headings of the published columns.
      lines: rows.
      sources: (name, source of the numbers) of each group of published columns.
    """

    title: str
    notes: str
    here: list[str]
    groups: list[tuple[str, int]]
    names: list[str]
    lines: list[ComparisonRow]
    sources: list[tuple[str, str]]

    @property
    def starts(self) -> set[int]:
        """Indices of the first column of each group."""
        return set(accumulate((columns for _, columns in self.groups[:-1]), initial=0))

    @property
    def marks(self) -> set[str]:
        """The marks of all published numbers in the table."""
        return {cell.mark for line in self.lines for cell in line.printed if cell}


def make_comparisons(tasks: Mapping[str, Mapping], tables: Sequence[Table]) -> list[Comparison]:
    """Returns the comparisons that have at least one comparable score.

    Columns without a number are left out.

    Args:
      tasks: task -> row of results.json.
      tables: published tables.
    """
    return [found for table in tables if (found := _compare_table(table, tasks))]


def explain_excluded_tasks(tasks: Mapping[str, Mapping], tables: Sequence[Table]) -> list[str]:
    """Returns the reason, as one line, for each task whose published numbers are not comparable.

    Args:
      tasks: task -> row of results.json.
      tables: published tables.
    """
    lines = []
    for name, row in tasks.items():
        printed = [
            (table, score)
            for table in tables
            for score in table.scores
            if score.task == name and _is_printed(table, score)
        ]
        # First the tables with the same metric, whose reasons are more informative.
        printed.sort(key=lambda pair: pair[1].metric not in row['metrics'])
        reasons = [_explain_difference(table, score, tasks) for table, score in printed]
        if reasons and all(reasons):
            lines.append(f'{name}: {reasons[0]}')
    return lines


def _compare_table(table: Table, tasks: Mapping[str, Mapping]) -> Comparison | None:
    scores = [
        score
        for score in table.scores
        if score.task in tasks and not _explain_difference(table, score, tasks)
    ]
    models = [model for model in table.models if any(score in model.cells for score in scores)]
    if not models:
        return None
    rows = [tasks[score.task] for score in scores]
    baselines = [kind for kind in BASELINES if any(kind in row['baselines'] for row in rows)]
    kinds = ['model', *baselines]
    lines = [
        _make_line(score, row, kinds, [model.cells.get(score) for model in models])
        for score, row in zip(scores, rows, strict=True)
    ]
    groups = [
        (group, len(list(members))) for group, members in groupby(model.group for model in models)
    ]
    return Comparison(
        title=table.title,
        notes=table.notes,
        here=[BASELINES.get(kind, kind) for kind in kinds],
        groups=groups,
        names=[model.name for model in models],
        lines=lines,
        sources=list(dict.fromkeys((model.group, model.source) for model in models)),
    )


def _make_line(
    score: TaskMetric, row: Mapping, kinds: Sequence[str], printed: list[PublishedNumber | None]
) -> ComparisonRow:
    by_kind = {'model': row['metrics'], **row['baselines']}
    values = [by_kind.get(kind, {}).get(score.metric) for kind in kinds]
    here = ['' if value is None else format_score(score.metric, value) for value in values]
    return ComparisonRow(
        score.task,
        label_metric(score.metric),
        f'{row["n"]:,} {row.get("counted", "queries")}',
        here,
        printed,
    )


def _is_printed(table: Table, score: TaskMetric) -> bool:
    return any(score in model.cells for model in table.models)


def _explain_difference(table: Table, score: TaskMetric, tasks: Mapping[str, Mapping]) -> str:
    """Returns the reason why a score is not comparable with a table; '' if it is comparable.

    The mean of a suite is comparable if the scores of all of its tasks are.
    """
    row = tasks[score.task]
    if score.metric not in row['metrics']:
        ours = label_metric(row['settings']['main_metric'])
        return f'{ours} here, {label_metric(score.metric)} published'
    if score.task in SUITES:
        for task in SUITES[score.task].tasks:
            if task in tasks:
                reason = _explain_difference(table, TaskMetric(task, score.metric), tasks)
                if reason:
                    return f'{task}: {reason}'
        return ''
    here = {**row['settings'], 'n': row['n']}
    required = {**table.measured, **table.sizes.get(score.task, {})}
    names = {'n': row.get('counted', 'queries')}
    return '; '.join(
        f'{names.get(key, key)}: {_format_setting(here.get(key))} here, {_format_setting(value)} '
        f'published'
        for key, value in required.items()
        if not _agrees(here.get(key), value)
    )


def _agrees(found: object, required: object) -> bool:
    if isinstance(required, RoundedCount):  # 5K is the rounded form of 5,183
        return isinstance(found, int) and abs(found - required.about) <= 0.05 * required.about
    if isinstance(required, AlternativeCounts):
        return found in required.counts
    return found == required


def _format_setting(value: object) -> str:
    if value is None:
        return 'unknown'
    text = f'{value:,}' if isinstance(value, int) else str(value)
    if len(text) <= MAX_SETTING_CHARACTERS:
        return text
    return text[:MAX_SETTING_CHARACTERS].rsplit(' ', 1)[0] + ' …'
