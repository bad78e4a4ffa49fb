"""Tables of experiments: means over seeds with intervals, as Markdown between markers of a page."""

import re
import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import scipy.stats

from cpt_jax.evals.store.results import BASELINES, format_score, label_metric
from cpt_jax.runtime.errors import UserError
from experiment import Experiment, Row, load_experiment, read_rows

LEVEL = 0.95
BASELINE = 'bm25'


class Estimate(NamedTuple):
    """A mean over seeds, and its 95% interval.

    Attributes:
      mean: mean over the seeds.
      bounds: t-interval over the seeds; of one seed, the interval over the queries or pairs of the
        task; None if there is none.
      values: value of each seed.
    """

    mean: float
    bounds: tuple[float, float] | None
    values: tuple[float, ...]


class Score(NamedTuple):
    """A task and its main metric.

    Attributes:
      task: name of the task, with the split unless it is test.
      metric: name of the metric.
    """

    task: str
    metric: str

    @property
    def label(self) -> str:
        """Label of a column."""
        return f'{self.task}, {label_metric(self.metric)}'


class Arm(NamedTuple):
    """The rows of all seeds with the same levels and step.

    Attributes:
      levels: factor -> level.
      step: the step, if several are evaluated; None otherwise.
      rows: seed -> row.
    """

    levels: dict[str, str]
    step: int | None
    rows: dict[int | None, Row]

    def estimate(self, score: Score) -> Estimate | None:
        """Returns the mean of a score; None if no seed has it."""
        found = [cell for row in self.rows.values() if (cell := find_cell(row, score))]
        if not found:
            return None
        values = [cell['score'] for cell in found]
        interval = found[0].get('interval') if len(found) == 1 else None
        return make_estimate(values, interval)

    def compare(self, other: 'Arm', score: Score) -> Estimate | None:
        """Returns the mean difference from another arm, seed by seed; None without two seeds."""
        # A run that trains nothing has one row, for all seeds.
        rows = {seed: other.rows.get(seed, other.rows.get(None)) for seed in self.rows}
        pairs = [
            (find_cell(row, score), find_cell(found, score))
            for seed, row in self.rows.items()
            if (found := rows[seed])
        ]
        differences = [mine['score'] - its['score'] for mine, its in pairs if mine and its]
        return make_estimate(differences) if len(differences) > 1 else None


class Findings(NamedTuple):
    """The results of an experiment.

    Attributes:
      name: name of its file.
      experiment: the experiment.
      arms: its arms that have results, in order.
      missing: number of runs without results.
    """

    name: str
    experiment: Experiment
    arms: list[Arm]
    missing: int

    @property
    def scores(self) -> list[Score]:
        """The tasks and metrics, in the order of the results."""
        found: dict[Score, None] = {}
        for row in self.rows:
            found |= dict.fromkeys(_list_scores(row))
        return list(found)

    @property
    def rows(self) -> list[Row]:
        """All rows."""
        return [row for arm in self.arms for row in arm.rows.values()]

    @property
    def heading(self) -> list[str]:
        """The heading of the table."""
        names = [*self.experiment.factors, *(['step'] if self.experiment.steps else [])]
        trained = ['pairs seen'] if self.experiment.trains else []
        scores = [score.label for score in self.scores]
        compared = ['first score, change'] if self._is_compared else []
        seeds = ['seeds'] if self.experiment.seeds else []
        return [*names, *trained, *scores, *compared, *seeds, 'processor seconds']

    @property
    def cells(self) -> list[list[str]]:
        """The cells of the table: one list an arm, and one for BM25 where it was scored."""
        lines = [self._make_line(arm) for arm in self.arms]
        baseline = [self._format_baseline(score) for score in self.scores]
        if any(baseline):
            before = self.heading.index(self.scores[0].label)
            after = len(self.heading) - before - len(baseline)
            lines.append([BASELINES[BASELINE], *[''] * (before - 1), *baseline, *[''] * after])
        return lines

    @property
    def caption(self) -> str:
        """The caption: meaning of the numbers, machine and code."""
        machines = ' and '.join(sorted({row['machine'] for row in self.rows}))
        codes = ', '.join(sorted({row['code'] for row in self.rows}))
        seeds = len(self.experiment.seeds)
        spread = 'Intervals (95%) are over the queries or pairs of the task.'
        if seeds > 1:
            spread = 'Means over the seeds with their 95% t-intervals (of one seed, over queries).'
        if any(self.find_baseline(score) is not None for score in self.scores):
            spread += f' Dashed lines are {BASELINES[BASELINE]}.'
        left = f' {self.missing} runs have no results yet.' if self.missing else ''
        return f'Scores x100. {spread} Measured on {machines}; code {codes}.{left}'

    @property
    def _is_compared(self) -> bool:
        return len(self.experiment.seeds) > 1 and len(self.arms) > 1

    def find_baseline(self, score: Score) -> float | None:
        """Returns BM25's score on a task; None without one.

        Raises:
          UserError: the rows have different BM25 scores, so their tasks or data differ.
        """
        cells = [find_cell(row, score) for row in self.rows]
        found = {
            cell['baselines'][BASELINE] for cell in cells if cell and BASELINE in cell['baselines']
        }
        if len(found) > 1:
            raise UserError(
                f'experiment {self.name}: rows with different scores of BM25 on {score.task}: '
                f'{", ".join(map(str, sorted(found)))}; remove the rows of the other data from '
                f'{self.name}.jsonl'
            )
        return found.pop() if found else None

    def _format_baseline(self, score: Score) -> str:
        found = self.find_baseline(score)
        return '' if found is None else format_score(score.metric, found)

    def _make_line(self, arm: Arm) -> list[str]:
        line = [*arm.levels.values(), *([f'{arm.step:,}'] if self.experiment.steps else [])]
        if self.experiment.trains:
            line.append(f'{max(row.get("pairs_seen", 0) for row in arm.rows.values()):,}')
        for score in self.scores:
            line.append(format_estimate(arm.estimate(score), score.metric))
        if self._is_compared:
            first = self.scores[0]
            change = None if arm is self.arms[0] else arm.compare(self.arms[0], first)
            line.append(format_estimate(change, first.metric, sign='+'))
        seconds = statistics.mean(
            sum(row['processor_seconds'].values()) for row in arm.rows.values()
        )
        count = [str(len(arm.rows))] if self.experiment.seeds else []
        return [*line, *count, f'{seconds:.0f}']


def collect(path: Path) -> Findings:
    """Returns the results of the experiment in a file."""
    experiment = load_experiment(path)
    arms: dict[tuple, Arm] = {}
    done = set()
    for run, step, row in read_rows(path, experiment):
        shown = step if experiment.steps else None
        arm = arms.setdefault((*run.levels.values(), shown), Arm(run.levels, shown, {}))  # type: ignore[arg-type]
        arm.rows[run.seed] = row
        done.add((run.name, run.evaluate, step))
    runs = experiment.list_runs()
    missing = [
        run for run in runs if any((run.name, run.evaluate, step) not in done for step in run.steps)
    ]
    order = [(*run.levels.values(), step) for run in runs for step in (experiment.steps or [None])]
    arms_in_order = [arms[key] for key in dict.fromkeys(order) if key in arms]
    return Findings(path.stem, experiment, arms_in_order, len(missing))


def find_cell(row: Row, score: Score) -> Row | None:
    """Returns the entry of a score in a row; None if there is none."""
    for name, cell in row['scores'].items():
        if (_label_task(name, cell), cell['metric']) == score:
            return cell
    return None


def make_estimate(values: Sequence[float], interval: Sequence[float] | None = None) -> Estimate:
    """Returns the mean of values with its t-interval.

    Args:
      values: one value a seed.
      interval: interval of a single value.
    """
    mean = statistics.mean(values)
    if len(values) == 1:
        bounds = (interval[0], interval[1]) if interval else None
        return Estimate(mean, bounds, tuple(values))
    quantile = scipy.stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)
    half = float(quantile) * statistics.stdev(values) / len(values) ** 0.5
    return Estimate(mean, (mean - half, mean + half), tuple(values))


def format_estimate(estimate: Estimate | None, metric: str, sign: str = '') -> str:
    """Returns '58.92 (56.21 to 61.58)'; '' if there is no estimate.

    Args:
      estimate: the estimate.
      metric: name of its metric.
      sign: '+' to give positive means a sign.
    """
    if estimate is None:
        return ''
    mean = format_score(metric, estimate.mean)
    if sign and estimate.mean > 0:
        mean = f'+{mean}'
    if estimate.bounds is None:
        return mean
    low, high = (format_score(metric, bound) for bound in estimate.bounds)
    return f'{mean} ({low} to {high})'


def format_markdown(findings: Findings, plot: str) -> str:
    """Returns the part of the page: table, plot, caption and command.

    Args:
      findings: the results.
      plot: address of the plot, relative to the page.
    """
    factors = len(findings.experiment.factors)
    rule = ['---'] * factors + ['--:'] * (len(findings.heading) - factors)
    lines = [_format_line(line) for line in (findings.heading, rule, *findings.cells)]
    if findings.arms:
        lines += ['', f'![{findings.experiment.title}]({plot})', '', *_wrap(findings.caption)]
    else:
        runs = findings.missing
        minutes = runs * findings.experiment.minutes
        lines = _wrap(
            f'Not run yet: {runs} runs, about {minutes:.0f} processor minutes (an estimate).'
        )
    return '\n'.join([*lines, '', *_format_command(findings)])


def fill_page(text: str, parts: Mapping[str, str]) -> str:
    """Returns a page with the parts between their markers.

    A marker is `<!-- experiment NAME -->`, and the part ends at `<!-- end -->`.

    Raises:
      UserError: the page has a marker of an unknown part, or no marker of a part.
    """
    seen = []

    def fill(match: re.Match[str]) -> str:
        seen.append(match[1])
        if match[1] not in parts:
            raise UserError(f'experiment {match[1]}: the page names it, and there is no such file')
        return f'<!-- experiment {match[1]} -->\n\n{parts[match[1]]}\n\n<!-- end -->'

    filled = re.sub(r'<!-- experiment (\S+) -->.*?<!-- end -->', fill, text, flags=re.DOTALL)
    for name in parts.keys() - set(seen):
        raise UserError(f'experiment {name}: the page has no <!-- experiment {name} -->')
    return filled


def _list_scores(row: Row) -> Iterator[Score]:
    for name, cell in row['scores'].items():
        yield Score(_label_task(name, cell), cell['metric'])


def _label_task(name: str, cell: Row) -> str:
    return f'{name} ({cell["split"]})' if cell.get('split', 'test') != 'test' else name


def _format_line(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'


def _wrap(text: str) -> list[str]:
    """Returns the lines of a paragraph."""
    return textwrap.wrap(text, 100, break_long_words=False, break_on_hyphens=False)


def _format_command(findings: Findings) -> list[str]:
    folders = ','.join(f'{name}={folder}' for name, folder in findings.experiment.folders.items())
    command = f'python benchmarks/sweep.py --experiments={findings.name} --folders={folders}'
    return ['```bash', command, '```']
