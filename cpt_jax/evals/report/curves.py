"""The curves of a training run, drawn from its metrics.jsonl."""

import base64
import io
import json
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from cpt_jax.evals.store.history import Row
from cpt_jax.evals.store.results import PLAIN, metric_label

COLORS = '#1d4ed8', '#d97706'
MAX_POINTS = 300  # of a curve; more are drawn as means of bins with a band from least to most


class Panel(NamedTuple):
    """One plot: its title and its curves, column of metrics.jsonl -> label; dashed ones are for
    comparison.
    """

    title: str
    curves: dict[str, str]
    dashed: dict[str, str] = {}


PANELS = (
    Panel(
        'Loss',
        {'loss': 'loss', 'heldout_loss': 'held-out'},
        {'log_batch': 'log B, all pairs alike'},
    ),
    Panel(
        'Held-out bits a byte',
        {'heldout_bits_per_byte': 'model'},
        {'unigram_bits_per_byte': 'unigram bytes'},
    ),
    Panel('Held-out retrieval, MRR', {'heldout_mrr': 'MRR'}),
    Panel('In-batch accuracy', {'accuracy_xy': 'x to y', 'accuracy_yx': 'y to x'}),
    Panel('Accuracy of the next token', {'accuracy': 'training', 'heldout_accuracy': 'held-out'}),
    Panel('Cosine', {'positive_cosine': 'pairs', 'negative_cosine': 'others'}),
    Panel('Scale (1 / temperature)', {'scale': 'scale'}),
    Panel('Learning rate', {'learning_rate': 'learning rate'}),
    Panel('Gradient norm, before clipping', {'grad_norm': 'norm'}),
    Panel('Pairs a second', {'pairs_per_second': 'pairs/s'}),
    Panel('Tokens a second', {'tokens_per_second': 'tokens/s'}),
    Panel('Padding, share of tokens', {'padding_share': 'padding'}),
)


def read_metrics(path: epath.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Column -> (steps, values), float64 each, in the order of the steps; {} where there is no
    file.

    A step that stands twice, as after a restart, counts as last written; a last line that is still
    being written is left out.
    """
    rows: dict[int, dict] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # the trainer's own file: only a line cut short by a crash is not JSON
        rows[row['step']] = rows.get(row['step'], {}) | row
    columns = sorted(
        {name for row in rows.values() for name, value in row.items() if _is_number(value)}
    )
    return {
        name: _column(
            [(step, row[name]) for step, row in sorted(rows.items()) if _is_number(row.get(name))]
        )
        for name in columns
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _column(points: list[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    steps, values = np.array(points, np.float64).T
    return steps, values


def draw_panels(metrics: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[tuple[str, str]]:
    """(title, SVG as a data URI) for each panel that has a column in `metrics`."""
    return [
        (panel.title, _draw(panel, metrics))
        for panel in PANELS
        if panel.curves.keys() & metrics.keys()
    ]


def draw_history(curves: dict[str, list[Row]]) -> list[tuple[str, str]]:
    """(title, SVG as a data URI) for each task that was followed: its main score at each
    checkpoint, as the tables show it.
    """
    drawn = []
    for task, rows in curves.items():
        metric = rows[-1]['main_metric']
        scale = 1 if metric in PLAIN else 100
        panel = Panel(f'{task}: {metric_label(metric)}', {task: 'model'})
        drawn.append(
            (
                panel.title,
                _draw(
                    panel,
                    {task: _column([(row['step'], scale * row['main_score']) for row in rows])},
                ),
            )
        )
    return drawn


def save_curves(metrics: dict[str, tuple[np.ndarray, np.ndarray]], path: Path) -> bool:
    """Writes the loss and what is held out beside each other as a PNG; False where `metrics` has no
    column of either.
    """
    panels = [panel for panel in PANELS[:3] if panel.curves.keys() & metrics.keys()]
    if panels:
        figure = Figure(figsize=(4.2 * len(panels), 2.6), layout='constrained')
        for axes, panel in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            _draw_on(axes, panel, metrics)
            axes.set_title(panel.title, fontsize=10)
        figure.savefig(path, dpi=150, metadata={'Software': None})
    return bool(panels)


def _draw(panel: Panel, metrics: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    figure = Figure(figsize=(4.2, 2.5), layout='constrained')
    _draw_on(figure.subplots(), panel, metrics)
    return _to_uri(figure)


def _draw_on(axes: Axes, panel: Panel, metrics: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    curves = [(name, label) for name, label in panel.curves.items() if name in metrics]
    for (name, label), color in zip(curves, COLORS, strict=False):
        _draw_curve(axes, *metrics[name], label, color)
    for name, label in panel.dashed.items():
        if name in metrics:
            axes.plot(*metrics[name], '--', color='#6b7280', linewidth=1, label=label)
    axes.set_xlabel('step')
    axes.grid(color='#e5e7eb', linewidth=0.6)
    axes.spines[['top', 'right']].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if panel.title.endswith('a second'):
        axes.yaxis.set_major_formatter(EngFormatter(sep=''))
    if len(axes.get_lines()) > 1:
        axes.legend(frameon=False, fontsize=8)


def _draw_curve(axes: Axes, steps: np.ndarray, values: np.ndarray, label: str, color: str) -> None:
    if len(values) > MAX_POINTS:
        bins = np.array_split(values, MAX_POINTS)
        steps = np.array([part.mean() for part in np.array_split(steps, MAX_POINTS)])
        axes.fill_between(
            steps,
            [part.min() for part in bins],
            [part.max() for part in bins],
            color=color,
            alpha=0.18,
            linewidth=0,
        )
        values = np.array([part.mean() for part in bins])
    axes.plot(
        steps,
        values,
        color=color,
        linewidth=1.4,
        label=label,
        marker='o' if len(values) <= 30 else None,
        markersize=3,
    )


def _to_uri(figure: Figure) -> str:
    """A figure inside an <img>, where its ids cannot meet those of another."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({'svg.hashsalt': 'cpt_jax'}):  # the same ids in every run
        figure.savefig(buffer, format='svg', metadata={'Date': None}, transparent=True)
    return 'data:image/svg+xml;base64,' + base64.b64encode(buffer.getvalue()).decode()
