"""Plots of experiments as SVG: one panel a score, each seed a dot, the mean a line or a bar."""

import io
import itertools

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiment_tables import Arm, Findings, Score

COLORS = '#1d4ed8', '#d97706', '#009e73', '#cc79a7', '#6b7280'
PANEL_WIDTH = 3.1  # inches
PANELS_IN_ROW = 4
LETTER_WIDTH = 0.062  # inches, of the labels of levels


def draw(findings: Findings) -> bytes:
    """Returns the plot of an experiment with results, as SVG with a white background."""
    scores = findings.scores
    is_curve = bool(findings.experiment.x_axis)
    height = 2.5 if is_curve else 0.7 + 0.26 * len(findings.arms)
    columns = min(len(scores), PANELS_IN_ROW)
    rows = -(-len(scores) // columns)
    width = PANEL_WIDTH * columns
    if not is_curve:
        width += LETTER_WIDTH * max(len(_label_arm(arm)) for arm in findings.arms)
    figure = Figure(figsize=(width, height * rows), layout='constrained')
    subplots = figure.subplots(rows, columns, squeeze=False, sharey=not is_curve).ravel()
    for axes in subplots[len(scores) :]:
        axes.set_axis_off()
    for axes, score in zip(subplots, scores, strict=False):
        (_draw_curves if is_curve else _draw_levels)(axes, findings, score)
        baseline = findings.find_baseline(score)
        if baseline is not None:
            draw_line = axes.axhline if is_curve else axes.axvline
            draw_line(100 * baseline, color=COLORS[-1], linewidth=0.9, linestyle='--')
        axes.set_title(score.label.replace(', ', '\n'), fontsize=9)
        axes.grid(color='#e5e7eb', linewidth=0.6)
        axes.spines[['top', 'right']].set_visible(False)
        axes.tick_params(labelsize=8)
    content = io.BytesIO()
    # Deterministic ids, and text as text, which is a fifth of the size.
    with matplotlib.rc_context({'svg.hashsalt': 'cpt_jax', 'svg.fonttype': 'none'}):
        figure.savefig(content, format='svg', metadata={'Date': None, 'Creator': None})
    return content.getvalue()


def _draw_curves(axes: Axes, findings: Findings, score: Score) -> None:
    """Draws the score over a numeric factor, one line for each combination of the others."""
    name = findings.experiment.x_axis
    lines: dict[str, list[Arm]] = {}
    for arm in findings.arms:
        others = [level for factor, level in arm.levels.items() if factor != name]
        lines.setdefault(', '.join(others), []).append(arm)
    for (label, arms), color in zip(lines.items(), itertools.cycle(COLORS)):
        points = [(_read_x(arm, name), arm.estimate(score)) for arm in arms]
        shown = [(x, estimate) for x, estimate in points if estimate]
        xs = [x for x, _ in shown]
        axes.plot(xs, [100 * found.mean for _, found in shown], color=color, label=label)
        for x, found in shown:
            axes.plot([x] * len(found.values), [100 * v for v in found.values], '.', color=color)
        if max(xs) >= 8 * min(xs):
            axes.set_xscale('log')
        axes.set_xticks(xs, [f'{x:,.0f}' for x in xs])
        axes.minorticks_off()
    axes.set_xlabel(name, fontsize=8)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=7)


def _draw_levels(axes: Axes, findings: Findings, score: Score) -> None:
    """Draws a line for each arm, the first one at the top."""
    for index, arm in enumerate(findings.arms):
        found = arm.estimate(score)
        if not found:
            continue
        if len(found.values) == 1 and found.bounds:
            axes.plot([100 * bound for bound in found.bounds], [index] * 2, color=COLORS[0])
        axes.plot(
            [100 * v for v in found.values], [index] * len(found.values), '.', color=COLORS[0]
        )
        axes.plot([100 * found.mean], [index], '|', color=COLORS[0], markersize=11)
    labels = [_label_arm(arm) for arm in findings.arms]
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)


def _label_arm(arm: Arm) -> str:
    return ', '.join(arm.levels.values())


def _read_x(arm: Arm, name: str) -> float:
    value = arm.step if name == 'step' else arm.levels[name]
    return float(str(value).replace(',', ''))
