"""Scores beside what is printed of other models, in tables of one family of tasks each; never of
what is not measured alike.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby
from typing import NamedTuple

from cpt_jax.evals.report.published import Figure, OneOf, Roughly, Score, Table
from cpt_jax.evals.store.results import BASELINES, format_score, metric_label
from cpt_jax.evals.suites import SUITES

SAID = 40  # characters of a setting in a line that tells of another one


class Line(NamedTuple):
    """One score: how it is called, of how many it is, and what was measured here and is printed
    elsewhere, a cell for each column.
    """

    task: str
    metric: str
    counted: str
    here: list[str]
    printed: list[Figure | None]

    @property
    def mean(self) -> bool:
        return self.task in SUITES


class Comparison(NamedTuple):
    """A table of the page.

    Attributes:
      title, notes: as of the published table.
      here: columns of what was measured here: the model and its baselines.
      groups: (group, how many columns it has) of the others.
      names: of those columns.
      lines: the rows.
      sources: (group, where its figures are printed) of those columns.
    """

    title: str
    notes: str
    here: list[str]
    groups: list[tuple[str, int]]
    names: list[str]
    lines: list[Line]
    sources: list[tuple[str, str]]

    @property
    def starts(self) -> set[int]:
        """The first column of each group."""
        return set(accumulate((columns for _, columns in self.groups[:-1]), initial=0))

    @property
    def marks(self) -> set[str]:
        return {figure.mark for line in self.lines for figure in line.printed if figure}


def compare(tasks: Mapping[str, Mapping], tables: Sequence[Table]) -> list[Comparison]:
    """The tables that have both a score of `tasks` and a figure for it, without columns and
    families of which nothing would be seen.

    Args:
      tasks: name -> row of results.json.
      tables: those that are printed.
    """
    return [found for table in tables if (found := _compare(table, tasks))]


def left_out(tasks: Mapping[str, Mapping], tables: Sequence[Table]) -> list[str]:
    """A line for each task that figures are printed for and that stands in no table, since it is
    not measured alike: why.
    """
    lines = []
    for name, row in tasks.items():
        printed = [
            (table, score)
            for table in tables
            for score in table.scores
            if score.task == name and _is_printed(table, score)
        ]
        # The reason of a table that has its metric says more.
        printed.sort(key=lambda pair: pair[1].metric not in row['metrics'])
        reasons = [_unlike(table, score, tasks) for table, score in printed]
        lines += [f'{name}: {reasons[0]}'] if reasons and all(reasons) else []
    return lines


def _compare(table: Table, tasks: Mapping[str, Mapping]) -> Comparison | None:
    scores = [
        score for score in table.scores if score.task in tasks and not _unlike(table, score, tasks)
    ]
    models = [model for model in table.models if any(score in model.figures for score in scores)]
    if not models:
        return None
    kinds = [
        'model',
        *(
            kind
            for kind in BASELINES
            if any(kind in tasks[score.task]['baselines'] for score in scores)
        ),
    ]
    lines = [
        _line(score, tasks[score.task], kinds, [model.figures.get(score) for model in models])
        for score in scores
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


def _line(score: Score, row: Mapping, kinds: Sequence[str], printed: list[Figure | None]) -> Line:
    values = [
        (row['metrics'] if kind == 'model' else row['baselines'].get(kind, {})).get(score.metric)
        for kind in kinds
    ]
    here = ['' if value is None else format_score(score.metric, value) for value in values]
    return Line(
        score.task,
        metric_label(score.metric),
        f'{row["n"]:,} {row.get("counted", "queries")}',
        here,
        printed,
    )


def _is_printed(table: Table, score: Score) -> bool:
    return any(score in model.figures for model in table.models)


def _unlike(table: Table, score: Score, tasks: Mapping[str, Mapping]) -> str:
    """Why a task's score cannot stand in the table, '' where it can. A mean can where all its tasks
    can.
    """
    row = tasks[score.task]
    if score.metric not in row['metrics']:
        return (
            f'{metric_label(row["settings"]["main_metric"])} here, {metric_label(score.metric)} '
            f'there'
        )
    if score.task in SUITES:
        members = [Score(task, score.metric) for task in SUITES[score.task].tasks if task in tasks]
        return next(
            (
                f'{member.task}: {why}'
                for member in members
                if (why := _unlike(table, member, tasks))
            ),
            '',
        )
    there = {**row['settings'], 'n': row['n']}
    wanted = {**table.measured, **table.sizes.get(score.task, {})}
    names = {'n': row.get('counted', 'queries')}
    return '; '.join(
        f'{names.get(key, key)}: {_said(there.get(key))} here, {_said(value)} there'
        for key, value in wanted.items()
        if not _agree(there.get(key), value)
    )


def _agree(found: object, wanted: object) -> bool:
    if isinstance(wanted, Roughly):  # 5K stands for 5,183
        return isinstance(found, int) and abs(found - wanted.about) <= 0.05 * wanted.about
    return found in wanted.counts if isinstance(wanted, OneOf) else found == wanted


def _said(value: object) -> str:
    text = 'not said' if value is None else f'{value:,}' if isinstance(value, int) else str(value)
    return text if len(text) <= SAID else text[:SAID].rsplit(' ', 1)[0] + ' …'
