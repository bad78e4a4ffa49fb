"""report/index.html: one page with the curves, the scores and what is found, readable without a
network.
"""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
from etils import epath

from cpt_jax.evals.report.bias_table import ALPHA, bias_table, is_test
from cpt_jax.evals.report.comparison import compare, left_out
from cpt_jax.evals.report.curves import draw_history, draw_panels, read_metrics
from cpt_jax.evals.report.published import MARKS, read_tables
from cpt_jax.evals.store.history import Row, curves
from cpt_jax.evals.store.results import BASELINES, PLAIN, format_score, metric_label

SHOWN_LINES = 12
PROSE_CHARACTERS = 600
# A text of several lines is shown as code unless a line is longer than this: then it is prose.
LONGEST_CODE_LINE = 160
ROWS = {'model': 'model', **BASELINES}


class Bar(NamedTuple):
    """A score, as it is shown and as a bar; `percent` is None of one that is no fraction, which has
    no bar.
    """

    kind: str
    label: str
    shown: str
    percent: float | None


class Snippet(NamedTuple):
    """A text cut to what the page shows."""

    text: str
    code: bool


def render(
    results: dict,
    examples: dict[str, list[dict]],
    metrics_path: epath.Path | None = None,
    rows: Sequence[Row] = (),
    maps: Sequence[dict] = (),
) -> str:
    """The page as HTML.

    Args:
      results: as in results.json.
      examples: task -> examples, as `example.examples_json` returns them.
      metrics_path: metrics.jsonl of the training run; without it, or without such a file, there are
        no curves.
      rows: of results.jsonl: the scores of the run's checkpoints, for their curves.
      maps: as the values that `embedding_map.map_json` returns.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {'snippet': snippet, 'plain': plain, 'score_bars': score_bars}
    published = list(read_tables().values())
    comparisons = compare(results['tasks'], published)
    return environment.get_template('report.html.j2').render(
        model=results['model'],
        settings=results['settings'],
        scored={name: row for name, row in results['tasks'].items() if not is_test(name)},
        comparisons=comparisons,
        left_out=left_out(results['tasks'], published),
        marks={
            mark: meaning
            for mark, meaning in MARKS.items()
            if any(mark in table.marks for table in comparisons)
        },
        bias=bias_table(results['tasks']),
        alpha=ALPHA,
        maps=maps,
        examples={name: examples[name] for name in results['tasks'] if examples.get(name)},
        panels=draw_panels(read_metrics(metrics_path)) if metrics_path else [],
        followed=draw_history(curves(rows)),
    )


def score_bars(row: dict) -> list[tuple[str, list[Bar]]]:
    """(metric, its bars) of a task, the main metric first."""
    scores = {'model': row['metrics'], **row['baselines']}
    names = sorted(row['metrics'], key=lambda name: name != row['settings']['main_metric'])
    return [
        (
            metric_label(name),
            [
                _bar(kind, label, name, scores[kind][name])
                for kind, label in ROWS.items()
                if name in scores.get(kind, {})
            ],
        )
        for name in names
    ]


def _bar(kind: str, label: str, name: str, value: float) -> Bar:
    return Bar(
        kind, label, format_score(name, value), None if name in PLAIN else 100 * max(value, 0)
    )


def snippet(text: str) -> Snippet:
    """The start of a text: lines of code as they are, prose as one paragraph."""
    lines = textwrap.dedent(text).strip('\n').split('\n')
    if len(lines) > 1 and max(map(len, lines)) <= LONGEST_CODE_LINE:
        return Snippet(
            '\n'.join(lines[:SHOWN_LINES] + ['…'] * (len(lines) > SHOWN_LINES)), code=True
        )
    words = ' '.join(text.split())
    return Snippet(
        words
        if len(words) <= PROSE_CHARACTERS
        else words[:PROSE_CHARACTERS].rsplit(' ', 1)[0] + ' …',
        code=False,
    )


def plain(value: object) -> str:
    """A setting for people: text as it is, the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
