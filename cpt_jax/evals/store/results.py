"""results.json, which collects the scores of several evaluations, and the table of its scores."""

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from etils import epath

from cpt_jax.evals.contamination import UNKNOWN, judge_contamination
from cpt_jax.evals.intervals.bootstrap import DESCRIPTION, LEVEL
from cpt_jax.evals.intervals.item_scores import QueryScores, compute_intervals
from cpt_jax.evals.task import Result
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_checks import (
    OBJECT,
    TEXT,
    Allowed,
    allow_integers,
    allow_list,
    allow_numbers,
    allow_object,
    check_values,
)
from cpt_jax.storage.json_files import read_json_file, write_json
from cpt_jax.storage.paths import as_path

RESULTS = 'results.json'

# Labels of metrics whose names need an explanation.
LABELS = {
    'spearman': 'Spearman',
    'spearman_mean': 'Spearman, mean of subsets',
    'spearman_wmean': 'Spearman, weighted mean',
    'pearson': 'Pearson',
    'effect_size': 'effect size d',
    'p_value': 'p-value',
    'p_holm': 'p-value, Holm',
}
# Baseline -> its label.
BASELINES = {'bm25': 'BM25', 'random': 'random', 'majority': 'majority'}
# Metrics that are not fractions -> their format.
PLAIN = {'effect_size': '.2f', 'p_value': '.2g', 'p_holm': '.2g'}
_RESULTS_KEYS = {'model': TEXT, 'settings': OBJECT, 'tasks': allow_object(OBJECT)}
ROW_KEYS = {
    'main_score': allow_numbers(),
    'metrics': allow_object(allow_numbers()),
    'n': allow_integers(0, 2**63 - 1),
    'settings': OBJECT,
    'baselines': allow_object(allow_object(allow_numbers())),
}
_INTERVALS = allow_object(
    Allowed(
        'a list of two numbers',
        lambda value: allow_list(allow_numbers()).accepts(value) and len(value) == 2,  # type: ignore[arg-type]
    )
)
# Keys that rows of earlier versions and of other tasks do not have.
_OPTIONAL_ROW_KEYS = {'intervals': _INTERVALS, 'baseline_intervals': allow_object(_INTERVALS)}


def read_earlier_json(path: Path | epath.Path) -> dict:
    """Returns the JSON object that an earlier evaluation wrote to `path`; {} if there is no file.

    Raises:
      UserError: the file is not JSON, or does not contain an object.
    """
    try:
        content = read_json_file(as_path(path), optional=True)
        if path.name == RESULTS and path.exists():
            for key in _RESULTS_KEYS.keys() - content.keys():
                raise UserError(f'{path}: has no {key!r}')
            check_results(as_path(path), content)
        return content
    except UserError as error:
        raise UserError(f'{error}: remove the file or write to another --output') from None


def check_results(path: Path, content: dict, required: Collection[str] = ROW_KEYS) -> None:
    """Checks the structure of a results.json.

    Args:
      path: the file, for messages.
      content: its content.
      required: keys that the row of a task must have.

    Raises:
      UserError: a key is missing, or has a value of another type.
    """
    check_values(path, content, _RESULTS_KEYS)
    for name, row in content.get('tasks', {}).items():
        missing = [key for key in required if key not in row]
        if missing:
            raise UserError(f'{path}: the row of {name} has no {missing[0]!r}')
        check_values(path, row, ROW_KEYS | _OPTIONAL_ROW_KEYS)
        if not isinstance(row['settings'].get('main_metric'), str):
            raise UserError(f"{path}: the row of {name} has no settings['main_metric']")


def make_empty_results(model: str, settings: dict[str, object]) -> dict:
    """Returns results without a task.

    Args:
      model: name of the model.
      settings: settings of the model: lengths, dtype, pooling, tokenizer, step.
    """
    return {'model': model, 'settings': json.loads(json.dumps(settings)), 'tasks': {}}


class ResultsFile:
    """results.json of one model. It never mixes rows of different models or settings.

    Attributes:
      path: path of the file.
      model: name of the model.
      settings: everything that the model's embeddings depend on, as plain JSON values.
    """

    def __init__(self, path: epath.Path, model: str, settings: dict[str, object]):
        self.path = path
        self.model = model
        self.settings = json.loads(json.dumps(settings))

    def load(self) -> dict:
        """Returns this model's results.

        They contain no task if the file is missing or has the results of another model.
        """
        earlier = read_earlier_json(self.path)
        if not earlier or self._describe_difference(earlier):
            return make_empty_results(self.model, self.settings)
        tasks = earlier.get('tasks', {})
        return {'model': self.model, 'settings': self.settings, 'tasks': tasks}

    def get_row(self, task: str) -> dict:
        """Returns the row of a task; {} if there is none."""
        return self.load()['tasks'].get(task, {})

    def describe_replaced_results(self) -> str:
        """Returns a message if the next `add` replaces the results in the file, '' otherwise."""
        earlier = read_earlier_json(self.path)
        other = self._describe_difference(earlier) if earlier else ''
        if not other:
            return ''
        return (
            f'the earlier {self.path.name} is replaced: it has the results of {other}; give '
            f'another --output to keep both'
        )

    def holds_later_checkpoint(self) -> bool:
        """Returns whether the file has results of a checkpoint that was saved after this model."""
        saved = read_earlier_json(self.path).get('settings', {}).get('saved', '')
        return saved > self.settings.get('saved', '')

    def add(
        self,
        name: str,
        result: Result,
        fingerprint: str,
        derive: Callable[[dict], dict] = lambda results: results,
    ) -> None:
        """Writes the row of a task. The caller holds the lock of the results.

        Args:
          name: task name.
          result: result of the task.
          fingerprint: fingerprint of the task.
          derive: function from results to results that adds values computed from several rows, such
            as means of suites.
        """
        results = add_result(self.load(), name, result, fingerprint)
        state = judge_contamination(self.settings, name)
        if state != UNKNOWN:  # rows of earlier versions, too, say nothing where nothing is known
            results['tasks'][name]['contamination'] = state
        write_json(as_path(self.path), derive(results))

    def _describe_difference(self, earlier: dict) -> str:
        """Returns the model of `earlier` and how it differs from this one; '' if it does not."""
        model, settings = earlier.get('model'), earlier.get('settings', {})
        if model != self.model:
            return f'another model ({model})'
        differing = sorted(
            key
            for key in {*settings, *self.settings}
            if settings.get(key) != self.settings.get(key)
        )
        return f'{model} with other settings ({", ".join(differing)})' if differing else ''


def add_result(results: dict, name: str, result: Result, fingerprint: str = '') -> dict:
    """Returns `results` with the row of a task, which replaces the task's earlier row.

    Args:
      results: content of results.json.
      name: task name.
      result: result of the task.
      fingerprint: fingerprint of the task; '' stores none.
    """
    row: dict[str, object] = {
        'main_score': result.main_score,
        'metrics': result.metrics,
        'n': result.n,
        'counted': result.counted,
        'settings': {'main_metric': result.metric, **result.settings},
        'baselines': result.baselines,
    }
    if result.item_scores:
        row['intervals'] = compute_intervals(result.item_scores)
        row['settings'] = {**row['settings'], 'intervals': DESCRIPTION}  # type: ignore[dict-item]
    if result.baseline_values:
        row['baseline_intervals'] = {
            kind: compute_intervals(QueryScores('', values))
            for kind, values in result.baseline_values.items()
        }
    if result.warnings:
        row['warnings'] = list(result.warnings)
    if fingerprint:
        row['fingerprint'] = fingerprint
    return {**results, 'tasks': {**results['tasks'], name: row}}


def label_metric(name: str) -> str:
    """Returns the label of a metric: for example 'MRR of 1,000' for 'mrr_of_1000'."""
    if name in LABELS:
        return LABELS[name]
    kind, _, pool = name.partition('_of_')
    word = (
        kind.replace('code_to_text_', 'code to text ')
        .replace('ndcg', 'nDCG')
        .replace('mrr', 'MRR')
        .replace('recall', 'Recall')
    )
    word = word.replace('_', ' ')
    if not pool:
        return word
    return f'{word} of {int(pool):,}' if pool.isdigit() else f'{word} of {pool}'


def format_score(name: str, value: float) -> str:
    """Returns the value of metric `name` as text: fractions x100, other numbers unscaled."""
    return f'{value:{PLAIN[name]}}' if name in PLAIN else f'{100 * value:.2f}'


def format_interval(name: str, interval: Sequence[float] | None) -> str:
    """Returns the bounds of an interval of metric `name` as text; '' if there is none."""
    if interval is None:
        return ''
    return ' to '.join(format_score(name, bound) for bound in interval)


def format_table(results: dict) -> str:
    """Returns the table for the terminal: every metric of every task (fractions x100), with its
    interval if any task has one, next to the baselines. If it is known of any task, the last column
    says whether the texts of the test set were removed from the training data.
    """
    kinds = [
        kind
        for kind in BASELINES
        if any(kind in row['baselines'] for row in results['tasks'].values())
    ]
    has_intervals = any(row.get('intervals') for row in results['tasks'].values())
    heading = [f'{LEVEL:.0%} interval'] if has_intervals else []
    states = [row.get('contamination', UNKNOWN) for row in results['tasks'].values()]
    ending = ['training data'] if {*states} - {UNKNOWN} else []
    names = [BASELINES[kind] for kind in kinds]
    cells = [('task', 'metric', 'model', *heading, *names, 'n', *ending)]
    for name, row in results['tasks'].items():
        for i, (metric, value) in enumerate(row['metrics'].items()):
            values = [value, *(row['baselines'].get(kind, {}).get(metric) for kind in kinds)]
            scores = ['' if value is None else format_score(metric, value) for value in values]
            if has_intervals:
                scores.insert(1, format_interval(metric, row.get('intervals', {}).get(metric)))
            first = '' if i else _label_task(name, row)
            last = [f'{row["n"]:,}', row.get('contamination', UNKNOWN)][: 1 + len(ending)]
            if i:
                last = [''] * len(last)
            cells.append((first, label_metric(metric), *scores, *last))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, tuple('-' * width for width in widths))
    return '\n'.join(_format_line(row, widths) for row in cells)


def _label_task(name: str, row: dict) -> str:
    """Returns the task name, followed by the split unless it is test. Papers report test scores, so
    other scores must not be mistaken for them.
    """
    split = row['settings'].get('split', 'test')
    return name if split == 'test' else f'{name} ({split})'


def _format_line(row: Sequence[str], widths: Sequence[int]) -> str:
    """Returns a line of the table: the first two cells left-aligned, the others right-aligned."""
    return '  '.join(
        cell.ljust(w) if i < 2 else cell.rjust(w)
        for i, (cell, w) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
