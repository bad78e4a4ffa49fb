"""Plots of training curves (metrics.jsonl) and of checkpoint scores, as images for the report."""

import base64
import io
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from absl import logging
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from cpt_jax.evals.store.history import Row
from cpt_jax.evals.store.results import PLAIN, label_metric
from cpt_jax.storage.json_rows import describe_damage, read_step_rows, select_numbers

COLORS = '#1d4ed8', '#d97706'
# Maximum number of points of a curve. Longer curves are binned: the line shows the mean of each
# bin, and the band shows its minimum and maximum.
MAX_POINTS = 300


class Panel(NamedTuple):
    """One plot.

    Attributes:
      title: title of the plot.
      curves: column of metrics.jsonl -> label of its curve.
      dashed: column of metrics.jsonl -> label of its curve, for reference curves.
    """

    title: str
    curves: dict[str, str]
    dashed: dict[str, str] = {}


PANELS = (
    Panel(
        'Loss',
        {'loss': 'loss', 'heldout_loss': 'held-out'},
        {'log_batch': 'log B, chance'},
    ),
    Panel(
        'Held-out bits per byte',
        {'heldout_bits_per_byte': 'model'},
        {'unigram_bits_per_byte': 'unigram bytes'},
    ),
    Panel('Held-out retrieval, MRR', {'heldout_mrr': 'MRR'}),
    Panel('In-batch accuracy', {'accuracy_xy': 'x to y', 'accuracy_yx': 'y to x'}),
    Panel('Next-token accuracy', {'accuracy': 'training', 'heldout_accuracy': 'held-out'}),
    Panel('Cosine', {'positive_cosine': 'positives', 'negative_cosine': 'negatives'}),
    Panel('Scale (1 / temperature)', {'scale': 'scale'}),
    Panel('Learning rate', {'learning_rate': 'learning rate'}),
    Panel('Gradient norm, before clipping', {'grad_norm': 'norm'}),
    Panel('Pairs per second', {'pairs_per_second': 'pairs/s'}),
    Panel('Tokens per second', {'tokens_per_second': 'tokens/s'}),
    Panel('Padding, fraction of tokens', {'padding_share': 'padding'}),
)


def read_metrics(path: epath.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns column -> (steps, values), float64, sorted by step; {} if there is no file.

    If a step has several rows, as after a restart, the last values are used. Lines that are no
    rows are skipped with a warning, an incomplete last line without.
    """
    if not path.exists():
        return {}
    found, damaged = read_step_rows(path.read_bytes())
    if damaged:
        logging.warning('%s', describe_damage(path, damaged))
    rows: dict[float, dict[str, float]] = {}
    for row in found:
        rows[row['step']] = rows.get(row['step'], {}) | select_numbers(row)
    columns = sorted({name for row in rows.values() for name in row})
    return {
        name: _make_column([(step, row[name]) for step, row in sorted(rows.items()) if name in row])
        for name in columns
    }


def _make_column(points: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    steps, values = np.array(points, np.float64).T
    return steps, values


def draw_panels(metrics: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[tuple[str, str]]:
    """Returns (title, SVG as a data URI) of each panel that has a column in `metrics`."""
    return [
        (panel.title, _draw_panel(panel, metrics))
        for panel in PANELS
        if panel.curves.keys() & metrics.keys()
    ]


def draw_history(curves: dict[str, list[Row]]) -> list[tuple[str, str]]:
    """Returns (title, SVG as a data URI) of each task: its main score at each checkpoint, scaled as
    in the tables.

    Args:
      curves: task -> rows of results.jsonl, as `history.select_curves` returns them.
    """
    drawn = []
    for task, rows in curves.items():
        metric = rows[-1]['main_metric']
        scale = 1 if metric in PLAIN else 100
        panel = Panel(f'{task}: {label_metric(metric)}', {task: 'model'})
        column = _make_column([(row['step'], scale * row['main_score']) for row in rows])
        drawn.append((panel.title, _draw_panel(panel, {task: column})))
    return drawn


def save_curves(metrics: dict[str, tuple[np.ndarray, np.ndarray]], path: Path) -> bool:
    """Writes the loss and the held-out metrics to a PNG file, next to each other.

    Returns:
      False if `metrics` has none of these columns; then no file is written.
    """
    panels = [panel for panel in PANELS[:3] if panel.curves.keys() & metrics.keys()]
    if not panels:
        return False
    figure = Figure(figsize=(4.2 * len(panels), 2.6), layout='constrained')
    subplots = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(subplots, panels, strict=True):
        _draw_panel_on(axes, panel, metrics)
        axes.set_title(panel.title, fontsize=10)
    figure.savefig(path, dpi=150, metadata={'Software': None})
    return True


def _draw_panel(panel: Panel, metrics: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    figure = Figure(figsize=(4.2, 2.5), layout='constrained')
    _draw_panel_on(figure.subplots(), panel, metrics)
    return _to_uri(figure)


def _draw_panel_on(
    axes: Axes, panel: Panel, metrics: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
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
    if panel.title.endswith('per second'):
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
    """Returns a figure as a data URI. In an <img>, its element ids cannot clash with those of other
    figures.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context({'svg.hashsalt': 'cpt_jax'}):  # deterministic ids
        figure.savefig(buffer, format='svg', metadata={'Date': None}, transparent=True)
    return 'data:image/svg+xml;base64,' + base64.b64encode(buffer.getvalue()).decode()
