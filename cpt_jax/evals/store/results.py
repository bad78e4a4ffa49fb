"""results.json: what was measured, kept from one evaluation to the next; and the same as a
table.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from etils import epath

from cpt_jax.evals.task import Result
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_files import read_json_file, write_json

RESULTS = 'results.json'

# Metrics whose names do not say what they are.
LABELS = {
    'spearman': 'Spearman',
    'spearman_mean': 'Spearman, mean of subsets',
    'spearman_wmean': 'Spearman, weighted mean',
    'pearson': 'Pearson',
    'effect_size': 'effect size d',
    'p_value': 'p-value',
    'p_holm': 'p-value, Holm',
}
# What a model is compared with -> how people call it.
BASELINES = {'bm25': 'BM25', 'random': 'random', 'majority': 'majority'}
# Metrics that are no fractions, and how they are shown.
PLAIN = {'effect_size': '.2f', 'p_value': '.2g', 'p_holm': '.2g'}


def read_earlier(path: epath.Path) -> dict:
    """Returns the object that an earlier evaluation wrote to a JSON file, {} where there is none.

    Raises:
      UserError: the file is not JSON, or holds something else than an object.
    """
    try:
        return read_json_file(Path(path), optional=True)
    except UserError as error:
        raise UserError(f'{error}: remove the file or write to another --output') from None


def new_results(model: str, settings: dict[str, object]) -> dict:
    """Results without a task. `settings` are the model's: lengths, dtype, pooling, tokenizer,
    step.
    """
    return {'model': model, 'settings': json.loads(json.dumps(settings)), 'tasks': {}}


class ResultsFile:
    """results.json of one model, next to which rows of another model cannot stand.

    Attributes:
      path: the file.
      model: name of the model.
      settings: all that the model's vectors depend on, as plain JSON values.
    """

    def __init__(self, path: epath.Path, model: str, settings: dict[str, object]):
        self.path, self.model = path, model
        self.settings = json.loads(json.dumps(settings))

    def load(self) -> dict:
        """Returns what the file holds of this model: results without a task where it holds another
        model's, or is not there.
        """
        earlier = read_earlier(self.path)
        if not earlier or self._other(earlier):
            return new_results(self.model, self.settings)
        tasks = earlier.get('tasks', {})
        return {'model': self.model, 'settings': self.settings, 'tasks': tasks}

    def row_of(self, task: str) -> dict:
        """Returns the row of a task, {} without one."""
        return self.load()['tasks'].get(task, {})

    def replaced_by(self) -> str:
        """Returns a line for the user where the file holds results that the next `add` replaces,
        and '' where it keeps them.
        """
        earlier = read_earlier(self.path)
        other = self._other(earlier) if earlier else ''
        if not other:
            return ''
        return (
            f'the earlier {self.path.name} is replaced: it is of {other}; another --output keeps '
            f'both'
        )

    def is_of_later_checkpoint(self) -> bool:
        """Whether the file holds results of a checkpoint that was saved later than this model."""
        saved = read_earlier(self.path).get('settings', {}).get('saved', '')
        return saved > self.settings.get('saved', '')

    def add(
        self,
        name: str,
        result: Result,
        fingerprint: str,
        derive: Callable[[dict], dict] = lambda results: results,
    ) -> None:
        """Writes the row of a task; other programs must be kept from writing meanwhile.

        Args:
          name, result, fingerprint: name, result and fingerprint of the task.
          derive: adds what follows from several rows, such as means of suites.
        """
        write_json(Path(self.path), derive(add_result(self.load(), name, result, fingerprint)))

    def _other(self, earlier: dict) -> str:
        """What `earlier` is of, where that is not this model with these settings."""
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
    """`results` with one more task; a task that was there already has its row replaced.
    `fingerprint`: that of the task.
    """
    row: dict[str, object] = {
        'main_score': result.main_score,
        'metrics': result.metrics,
        'n': result.n,
        'counted': result.counted,
        'settings': {'main_metric': result.metric, **result.settings},
        'baselines': result.baselines,
    }
    if fingerprint:
        row['fingerprint'] = fingerprint
    return {**results, 'tasks': {**results['tasks'], name: row}}


def metric_label(name: str) -> str:
    """'mrr_of_1000' -> 'MRR of 1,000'; 'ndcg@10' -> 'nDCG@10'; those of `LABELS` as there."""
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
    """The value of metric `name` for people: a fraction x100, a plain number as it is."""
    return f'{value:{PLAIN[name]}}' if name in PLAIN else f'{100 * value:.2f}'


def format_table(results: dict) -> str:
    """The table for the terminal: every metric of every task, fractions x100, and what a task is
    compared with.
    """
    kinds = [
        kind
        for kind in BASELINES
        if any(kind in row['baselines'] for row in results['tasks'].values())
    ]
    cells = [('task', 'metric', 'model', *(BASELINES[kind] for kind in kinds), 'n')]
    for name, row in results['tasks'].items():
        for i, (metric, value) in enumerate(row['metrics'].items()):
            scores = [value, *(row['baselines'].get(kind, {}).get(metric) for kind in kinds)]
            first, last = ('', '') if i else (_with_split(name, row), f'{row["n"]:,}')
            cells.append(
                (
                    first,
                    metric_label(metric),
                    *('' if score is None else format_score(metric, score) for score in scores),
                    last,
                )
            )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, tuple('-' * width for width in widths))
    return '\n'.join(_line(row, widths) for row in cells)


def _with_split(name: str, row: dict) -> str:
    """The task, and what of its data was scored where that is not its test set: such scores are
    easily taken for those of papers.
    """
    split = row['settings'].get('split', 'test')
    return name if split == 'test' else f'{name} ({split})'


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    """Names stand left, numbers right."""
    return '  '.join(
        cell.ljust(w) if i < 2 else cell.rjust(w)
        for i, (cell, w) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
