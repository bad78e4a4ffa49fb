"""report.html: a self-contained page about a prepared data set."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cpt_jax.evals.report import page
from cpt_jax.prepare.examples import decode_example
from cpt_jax.prepare.record_files import read_records
from cpt_jax.storage.templates import open_templates

SAMPLES = 12
_LENGTHS = 2000
_SHOWN_CHARACTERS = 600
_COLOR = '#1d4ed8'
_SEED = 0


def sample_examples(paths: Sequence[Path], lengths: Sequence[int]) -> list[dict[str, list[str]]]:
    """Returns up to 2,000 random pairs of the shards of a split.

    Args:
      paths: paths of the shards.
      lengths: number of pairs of each.
    """
    total = sum(lengths)
    random = np.random.default_rng(_SEED)
    chosen = np.sort(random.choice(total, min(_LENGTHS, total), replace=False))
    starts = np.cumsum([0, *lengths])
    records: list[bytes] = []
    for path, start, end in zip(paths, starts, starts[1:], strict=False):
        own = chosen[(chosen >= start) & (chosen < end)] - start
        records += read_records(path, own.tolist())
    examples = [decode_example(record) for record in records]
    return [examples[i] for i in random.permutation(len(examples))]


def render_preparation(
    summary: Mapping[str, Any], examples: Sequence[Mapping[str, list[str]]]
) -> str:
    """Returns the page as HTML.

    Args:
      summary: content of summary.json.
      examples: random pairs.
    """
    environment = open_templates(Path(__file__).parent, Path(page.__file__).parent, is_html=True)
    samples = [
        {name: (example.get(name) or [''])[0][:_SHOWN_CHARACTERS] for name in _SHOWN_FIELDS}
        for example in examples[:SAMPLES]
    ]
    return environment.get_template('report.html.j2').render(
        summary=summary, plots=_draw_plots(summary, examples), samples=samples
    )


_SHOWN_FIELDS = ('x', 'y', 'id', 'source')


def _draw_plots(
    summary: Mapping[str, Any], examples: Sequence[Mapping[str, list[str]]]
) -> dict[str, str]:
    """Returns the plots as PNG in base64, by title."""
    pairs = {name: sum(found['pairs'].values()) for name, found in summary['sources'].items()}
    dropped = {name: count for name, count in summary['total']['dropped'].items() if count}
    plots = {
        f'Characters of x, {len(examples):,} pairs': _draw_lengths(examples, 'x'),
        f'Characters of y, {len(examples):,} pairs': _draw_lengths(examples, 'y'),
        'Pairs by source': _draw_bars(pairs),
    }
    if dropped:
        plots['Dropped'] = _draw_bars(dropped)
    if 'consistency' in summary:
        plots['Rank of y for x (consistency)'] = _draw_bars(summary['consistency']['ranks'])
    return plots


def _draw_lengths(examples: Sequence[Mapping[str, list[str]]], side: str) -> str:
    def draw(axes: Axes) -> None:
        axes.hist([len(example[side][0]) for example in examples], bins=40, color=_COLOR)
        axes.set_ylabel('pairs')

    return _draw(draw)


def _draw_bars(counts: Mapping[str, int]) -> str:
    def draw(axes: Axes) -> None:
        names = list(counts)[::-1]
        axes.barh(names, [counts[name] for name in names], color=_COLOR)

    return _draw(draw)


def _draw(draw: Any) -> str:
    """Returns a plot as PNG in base64."""
    with matplotlib.rc_context({'font.size': 9, 'axes.spines.top': False}):
        figure = Figure((5.2, 2.6), layout='constrained', dpi=120)
        draw(figure.subplots())
        file = io.BytesIO()
        figure.savefig(file, format='png', metadata={'Software': None})
    return base64.b64encode(file.getvalue()).decode()
