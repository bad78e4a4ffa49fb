"""report/index.html: a self-contained page with scores, comparisons, curves, maps and examples."""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from etils import epath

from cpt_jax.evals.report.bias_table import ALPHA, is_association_test, make_bias_table
from cpt_jax.evals.report.comparison import explain_excluded_tasks, make_comparisons
from cpt_jax.evals.report.curves import draw_history, draw_panels, read_metrics
from cpt_jax.evals.report.published import MARKS, read_tables
from cpt_jax.evals.store.history import Row, select_curves
from cpt_jax.evals.store.results import (
    BASELINES,
    PLAIN,
    format_interval,
    format_score,
    label_metric,
)
from cpt_jax.storage.templates import open_templates

SHOWN_LINES = 12
PROSE_CHARACTERS = 600
# Maximum characters of a line of code. A text of several lines is shown as code unless one of its
# lines is longer.
LONGEST_CODE_LINE = 160
ROWS = {'model': 'model', **BASELINES}


class ScoreBar(NamedTuple):
    """A score with its bar.

    Attributes:
      kind: 'model' or the name of a baseline.
      label: label of the kind.
      shown: formatted score.
      percent: length of the bar; None for metrics that are not fractions, which have no bar.
      interval: formatted interval; '' if there is none.
      bounds: positions of its ends on the bar, in percent.
    """

    kind: str
    label: str
    shown: str
    percent: float | None
    interval: str = ''
    bounds: tuple[float, float] = (0, 0)


class Snippet(NamedTuple):
    """The part of a text that the page shows, and whether to show it as code."""

    text: str
    code: bool


def render_page(
    results: dict,
    examples: dict[str, list[dict]],
    metrics_path: epath.Path | None = None,
    rows: Sequence[Row] = (),
    maps: Sequence[dict] = (),
) -> str:
    """Returns the page as HTML.

    Args:
      results: content of results.json.
      examples: task -> examples, as `example.examples_to_json` returns them.
      metrics_path: metrics.jsonl of the training run; without it, there are no training curves.
      rows: rows of results.jsonl, from which the curves of checkpoint scores are drawn.
      maps: maps, as JSON objects of `embedding_map.map_to_json`.
    """
    environment = open_templates(Path(__file__).parent, is_html=True)
    environment.filters |= {
        'cut_snippet': cut_snippet,
        'format_setting': format_setting,
        'score_bars': make_score_bars,
    }
    published = list(read_tables().values())
    comparisons = make_comparisons(results['tasks'], published)
    return environment.get_template('report.html.j2').render(
        model=results['model'],
        settings=results['settings'],
        scored={
            name: row for name, row in results['tasks'].items() if not is_association_test(name)
        },
        comparisons=comparisons,
        excluded=explain_excluded_tasks(results['tasks'], published),
        marks={
            mark: meaning
            for mark, meaning in MARKS.items()
            if any(mark in table.marks for table in comparisons)
        },
        bias=make_bias_table(results['tasks']),
        alpha=ALPHA,
        maps=maps,
        examples={name: examples[name] for name in results['tasks'] if examples.get(name)},
        panels=draw_panels(read_metrics(metrics_path)) if metrics_path else [],
        followed=draw_history(select_curves(rows)),
    )


def make_score_bars(row: dict) -> list[tuple[str, list[ScoreBar]]]:
    """Returns (metric, bars of the model and the baselines) of a task, the main metric first."""
    scores = {'model': row['metrics'], **row['baselines']}
    names = sorted(row['metrics'], key=lambda name: name != row['settings']['main_metric'])
    metrics = []
    for name in names:
        bars = [
            _make_bar(kind, label, name, scores[kind][name], _get_interval(row, kind, name))
            for kind, label in ROWS.items()
            if name in scores.get(kind, {})
        ]
        metrics.append((label_metric(name), bars))
    return metrics


def _get_interval(row: dict, kind: str, name: str) -> Sequence[float] | None:
    """Returns the interval of a metric of the model or of a baseline; None if there is none."""
    intervals = {'model': row.get('intervals', {}), **row.get('baseline_intervals', {})}
    return intervals.get(kind, {}).get(name)


def _make_bar(
    kind: str, label: str, name: str, value: float, interval: Sequence[float] | None
) -> ScoreBar:
    percent = None if name in PLAIN else 100 * max(value, 0)
    bar = ScoreBar(kind, label, format_score(name, value), percent)
    if interval is None:
        return bar
    low, high = (100 * min(max(bound, 0), 1) for bound in interval)
    return bar._replace(interval=format_interval(name, interval), bounds=(low, high))


def cut_snippet(text: str) -> Snippet:
    """Returns the start of a text: code with its line breaks, prose as one paragraph."""
    lines = textwrap.dedent(text).strip('\n').split('\n')
    if len(lines) > 1 and max(map(len, lines)) <= LONGEST_CODE_LINE:
        if len(lines) > SHOWN_LINES:
            lines = [*lines[:SHOWN_LINES], '…']
        return Snippet('\n'.join(lines), code=True)
    words = ' '.join(text.split())
    if len(words) > PROSE_CHARACTERS:
        words = words[:PROSE_CHARACTERS].rsplit(' ', 1)[0] + ' …'
    return Snippet(words, code=False)


def format_setting(value: object) -> str:
    """Returns a setting as text: a string unchanged, other values as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
