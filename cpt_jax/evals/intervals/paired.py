"""Differences between two results on the same queries or pairs, for evaluate.py --compare."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from cpt_jax.evals.intervals.bootstrap import DESCRIPTION, LEVEL, compute_interval
from cpt_jax.evals.intervals.item_scores import (
    ItemScores,
    draw_mean_score,
    make_scores_path,
    read_item_scores,
)
from cpt_jax.evals.store.results import PLAIN, RESULTS, check_results, format_score, label_metric
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_files import read_json_file
from cpt_jax.storage.paths import as_path

_LABELS = 'A', 'B'
# If all n differences have the same sign, so has every resample, and the interval excludes 0. For
# two equal models, this happens with probability 2 / 2**n: below 1 - LEVEL for 6 or more items.
MIN_ITEMS = 6


class Difference(NamedTuple):
    """The difference between two main scores of a task.

    Attributes:
      task: task name.
      metric: main metric; '' if it is not the same in both results.
      scores: score of A and of B, None where there is none.
      interval: bounds of the interval of B - A; None if it cannot be computed.
      problem: the reason, '' if there is an interval.
    """

    task: str
    metric: str
    scores: tuple[float | None, float | None]
    interval: tuple[float, float] | None = None
    problem: str = ''

    @property
    def verdict(self) -> str:
        """Which of the two is better, or why that is not known."""
        if self.interval is None:
            return self.problem
        low, high = self.interval
        if low > 0:
            return 'B is better'
        return 'A is better' if high < 0 else 'no difference shown'


class Results(NamedTuple):
    """The results of one model.

    Attributes:
      output: directory of results.json and scores/.
      model: name of the model.
      rows: task -> row of results.json.
    """

    output: epath.Path
    model: str
    rows: Mapping[str, Mapping[str, Any]]


def read_results(reference: str) -> Results:
    """Returns the results in a directory, or of the path of a results.json.

    Raises:
      UserError: there are none, or the file is damaged.
    """
    path = epath.Path(reference)
    path = path if path.name == RESULTS else path / RESULTS
    if not path.exists():
        raise UserError(
            f'--compare {reference}: no {RESULTS} there: give the --output of two evaluations'
        )
    content = read_json_file(as_path(path))
    check_results(Path(path), content)
    return Results(path.parent, content.get('model', ''), content.get('tasks', {}))


def compare_results(first: Results, second: Results) -> list[Difference]:
    """Returns the difference of every task that either of two results has, in the order of A."""
    names = dict.fromkeys([*first.rows, *second.rows])
    return [_compare_task(name, (first, second)) for name in names]


def _compare_task(task: str, results: tuple[Results, Results]) -> Difference:
    rows = [result.rows.get(task) for result in results]
    scores = tuple(row['main_score'] if row else None for row in rows)
    metrics = {row['settings']['main_metric'] for row in rows if row}
    metric = metrics.pop() if len(metrics) == 1 else ''
    difference = Difference(task, metric, scores)  # type: ignore[arg-type]
    if None in rows:
        return difference._replace(problem=f'only in {_LABELS[rows.index(None) ^ 1]}')
    if not metric:
        return difference._replace(problem='the main metrics differ')
    members = rows[0]['settings'].get('tasks')  # type: ignore[index]
    items: list[list[ItemScores]] = []
    for name in members or [task]:
        found, problem = _read_both(name, results)
        if problem:
            return difference._replace(problem=f'{name}: {problem}' if members else problem)
        items.append(found)
    count = sum(scores.n for scores, _ in items)
    if count < MIN_ITEMS:
        return difference._replace(
            problem=f'no interval: {count} of the {MIN_ITEMS} queries or pairs that it needs'
        )
    first_D, second_D = (draw_mean_score(scores, metric) for scores in zip(*items, strict=True))
    return difference._replace(interval=compute_interval(second_D - first_D))


def _read_both(task: str, results: tuple[Results, Results]) -> tuple[list[ItemScores], str]:
    """Returns the scores of single queries or pairs of A and of B, and '' if they can be compared,
    otherwise why not.
    """
    found: list[ItemScores] = []
    for label, result in zip(_LABELS, results, strict=True):
        items = read_item_scores(result.output, task, result.rows[task]['main_score'])
        if items is None:
            return found, _explain_missing(label, result, task)
        found.append(items)
    if found[0].items != found[1].items:
        return found, 'not the same queries or pairs: other data or split'
    return found, ''


def _explain_missing(label: str, result: Results, task: str) -> str:
    """Returns why the scores of single queries or pairs of a result are missing."""
    if task.partition('/')[0] == 'bias':
        return 'no intervals for this kind of task'
    path = make_scores_path(result.output, task)
    state = 'is of another evaluation' if path.exists() else 'is missing'
    return f'{label}: {path} {state}: evaluate again with --again'


def format_differences(
    differences: list[Difference], results: tuple[Results, Results], references: tuple[str, str]
) -> str:
    """Returns the table for the terminal: one line for each task.

    Args:
      differences: from `compare_results`.
      results: the two results.
      references: paths of the results, as the user gave them.
    """
    head = ('task', 'metric', *_LABELS, 'B - A', f'{LEVEL:.0%} interval', '')
    cells: list[tuple[str, ...]] = [head]
    cells += [_make_line(difference) for difference in differences]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        '  '.join(
            cell.ljust(width) if i in (0, 1, 6) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    heads = [
        f'{label}: {reference} ({result.model})'
        for label, reference, result in zip(_LABELS, references, results, strict=True)
    ]
    notes = (
        f'\nscores x100; {DESCRIPTION} of the difference, with the same resamples of queries or '
        f'pairs for A and B.\nA difference whose interval excludes 0 is one at the '
        f'{1 - LEVEL:.0%} level for its task alone: of 20 tasks without a difference, one is '
        f'expected to show one. Training with other seeds is not part of it.'
    )
    return '\n'.join([*heads, '', *lines, notes])


def _make_line(difference: Difference) -> tuple[str, ...]:
    metric = difference.metric
    scores = ['' if score is None else format_score(metric, score) for score in difference.scores]
    change = bounds = ''
    if difference.interval is not None:
        first, second = difference.scores
        assert first is not None and second is not None
        change = _format_signed(metric, second - first)
        bounds = ' to '.join(_format_signed(metric, bound) for bound in difference.interval)
    label = label_metric(metric) if metric else ''
    return difference.task, label, *scores, change, bounds, difference.verdict


def _format_signed(metric: str, value: float) -> str:
    """Returns a difference with its sign."""
    return f'{value:+.2f}' if metric in PLAIN else f'{100 * value:+.2f}'
