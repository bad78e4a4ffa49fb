"""results.jsonl: the scores of a run's checkpoints, one row for a checkpoint and task.

    {"step": 40, "saved": ..., "task": "sts/STSBenchmark", "fingerprint": ..., "main_score": 0.71,
    "main_metric": "spearman",
     "metrics": {...}, "n": 1379, "seconds": 4.2, "time": ...}

A row counts when its line is whole, with the line's end. It is named by its step, when that
checkpoint was saved, its task, and the fingerprint of all else that the score depends on; of one
name there is one row.
"""

from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path

from cpt_jax.evals.store.results import PLAIN, format_score
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_rows import append_row, read_whole_rows

HISTORY = 'results.jsonl'
NAME = 'step', 'saved', 'task', 'fingerprint'
_KEYS = {*NAME, 'main_score', 'main_metric', 'metrics', 'time'}

Row = dict
Name = tuple[int, str, str, str]


def name_of(row: Row) -> Name:
    return tuple(row[key] for key in NAME)


def read_rows(path: Path) -> list[Row]:
    """The rows, in the order in which they were written; [] where there is no file. A line that a
    killed program left torn is no row.

    Raises:
      UserError: with file and line, where a whole line is no row.
    """
    rows = []
    for where, row in read_whole_rows(path):
        if not isinstance(row, dict) or _KEYS - row.keys():
            raise UserError(
                f'{where}: not a row of launch/evaluate.py --follow: mend or remove the line'
            )
        rows.append(row)
    return rows


def add_row(path: Path, row: Row) -> bool:
    """Appends a row, on the disk when this returns; False where one of its name is there. The
    caller keeps others from doing it too.
    """
    if name_of(row) in map(name_of, read_rows(path)):
        return False
    append_row(path, row)
    return True


def curves(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Task -> one row a step, by steps, all measured alike: with the fingerprint of the task's last
    row.

    Of one step the last row counts. A checkpoint that was saved before one of an earlier step is of
    a part of the training that was given up (the run went back, or began anew): its rows do not
    count.
    """
    rows = _of_this_training(rows)
    current = {row['task']: row['fingerprint'] for row in rows}
    found: dict[str, dict[int, Row]] = {task: {} for task in current}
    for row in rows:
        if row['fingerprint'] == current[row['task']]:
            found[row['task']][row['step']] = row
    return {task: [by_step[step] for step in sorted(by_step)] for task, by_step in found.items()}


def measured_otherwise(rows: Iterable[Row], asked: Mapping[str, str]) -> list[str]:
    """Tasks whose curve has another fingerprint than the one asked for: it was measured later, and
    differently.
    """
    return [
        task
        for task, series in curves(rows).items()
        if asked.get(task, series[-1]['fingerprint']) != series[-1]['fingerprint']
    ]


def _of_this_training(rows: Iterable[Row]) -> list[Row]:
    rows = list(rows)
    saved = sorted({(row['step'], row['saved']) for row in rows})
    newest = dict(
        zip((step for step, _ in saved), accumulate((when for _, when in saved), max), strict=True)
    )
    return [row for row in rows if row['saved'] >= newest[row['step']]]


def format_history(rows: Iterable[Row]) -> str:
    """The table for the terminal: main scores, a line a checkpoint and a column a task; the best
    one of a task with a star.
    """
    rows = list(rows)
    tasks, best = curves(rows), best_of(rows)
    score = {(row['step'], task): row for task, series in tasks.items() for row in series}
    cells = [['step', *tasks]]
    for step in sorted({step for step, _ in score}):
        cells.append(
            [f'{step:,}', *(_cell(score.get((step, task)), best.get(task)) for task in tasks)]
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return '\n'.join(
        '  '.join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    )


def _cell(row: Row | None, best: Mapping[str, float] | None) -> str:
    if row is None:
        return '-'
    return format_score(row['main_metric'], row['main_score']) + (
        '*' if best and best['step'] == row['step'] else ' '
    )


def best_of(rows: Iterable[Row]) -> dict[str, Mapping[str, float]]:
    """Task -> {step, score} of its best checkpoint: the highest main score, of equal ones the
    latest (PromptEOL's `>=`).

    Tasks whose main metric is no share of anything, such as a bias test's effect size, have none:
    more is not better.
    """
    tasks = {
        task: series
        for task, series in curves(rows).items()
        if series[-1]['main_metric'] not in PLAIN
    }
    best = {
        task: max(series, key=lambda row: (row['main_score'], row['step']))
        for task, series in tasks.items()
    }
    return {task: {'step': row['step'], 'score': row['main_score']} for task, row in best.items()}
