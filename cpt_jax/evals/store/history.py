"""results.jsonl: the scores of a run's checkpoints, one row for a checkpoint and task.

    {"step": 40, "saved": ..., "task": "sts/STSBenchmark", "fingerprint": ..., "main_score": 0.71,
    "main_metric": "spearman",
     "metrics": {...}, "n": 1379, "seconds": 4.2, "time": ...}

A row is valid if its line is complete, including the newline. Its key consists of the step, the
time at which the checkpoint was saved, the task, and the fingerprint of everything else that the
score depends on. Each key has at most one row.
"""

from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path

from cpt_jax.evals.store.results import PLAIN, format_score
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_checks import (
    TEXT,
    Allowed,
    allow_integers,
    allow_numbers,
    allow_object,
)
from cpt_jax.storage.json_rows import append_row, read_complete_rows

HISTORY = 'results.jsonl'
KEY_FIELDS = 'step', 'saved', 'task', 'fingerprint'
_NUMBER = allow_numbers()
_FIELDS = {
    'step': allow_integers(0, 2**63 - 1),
    **dict.fromkeys(('saved', 'task', 'fingerprint', 'main_metric'), TEXT),
    'main_score': _NUMBER,
    'metrics': allow_object(_NUMBER),
    'time': Allowed('any value', lambda value: True),
}

Row = dict
RowKey = tuple[int, str, str, str]


def get_row_key(row: Row) -> RowKey:
    return tuple(row[field] for field in KEY_FIELDS)


def read_rows(path: Path) -> list[Row]:
    """Reads the rows in the order in which they were written; [] if there is no file.

    An incomplete last line, left by a killed program, is skipped.

    Raises:
      UserError: a complete line is not a row (with file and line).
    """
    rows = []
    for where, row in read_complete_rows(path):
        if not isinstance(row, dict) or not _has_fields(row):
            raise UserError(
                f'{where}: not a row of launch/evaluate.py --follow: fix or remove the line'
            )
        rows.append(row)
    return rows


def _has_fields(row: Row) -> bool:
    """Whether a row has every required field, of the right type."""
    return all(name in row and allowed.accepts(row[name]) for name, allowed in _FIELDS.items())


def add_row(path: Path, row: Row) -> bool:
    """Appends a row and flushes it to disk. Returns False if there is a row with its key already.

    The caller holds the lock of the results.
    """
    if get_row_key(row) in map(get_row_key, read_rows(path)):
        return False
    append_row(path, row)
    return True


def select_curves(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Returns the comparable rows of each task, one per step, sorted by step.

    Only rows with the fingerprint of the task's last row are comparable. If a step has several
    comparable rows, the last one is returned. Rows of abandoned checkpoints are dropped. A
    checkpoint is abandoned if a checkpoint with a lower step was saved after it: the run was then
    resumed from the lower step, or restarted.
    """
    rows = _drop_abandoned(rows)
    current = {row['task']: row['fingerprint'] for row in rows}
    found: dict[str, dict[int, Row]] = {task: {} for task in current}
    for row in rows:
        if row['fingerprint'] == current[row['task']]:
            found[row['task']][row['step']] = row
    return {task: [by_step[step] for step in sorted(by_step)] for task, by_step in found.items()}


def find_remeasured_tasks(rows: Iterable[Row], row_fingerprints: Mapping[str, str]) -> list[str]:
    """Returns the tasks whose last row has another fingerprint than expected.

    Such a task was later measured with other options or data.

    Args:
      rows: rows of results.jsonl.
      row_fingerprints: task -> expected fingerprint.
    """
    return [
        task
        for task, series in select_curves(rows).items()
        if row_fingerprints.get(task, series[-1]['fingerprint']) != series[-1]['fingerprint']
    ]


def _drop_abandoned(rows: Iterable[Row]) -> list[Row]:
    """Returns the rows without those of abandoned checkpoints (see `select_curves`)."""
    rows = list(rows)
    checkpoints = sorted({(row['step'], row['saved']) for row in rows})
    steps = [step for step, _ in checkpoints]
    # The latest save time of any checkpoint up to each step.
    latest = accumulate((saved for _, saved in checkpoints), max)
    latest_by_step = dict(zip(steps, latest, strict=True))
    return [row for row in rows if row['saved'] >= latest_by_step[row['step']]]


def format_history(rows: Iterable[Row]) -> str:
    """Returns the table for the terminal: the main score of each checkpoint (row) on each task
    (column). A star marks the best checkpoint of a task.
    """
    rows = list(rows)
    tasks = select_curves(rows)
    best = find_best_checkpoints(rows)
    by_cell = {(row['step'], task): row for task, series in tasks.items() for row in series}
    cells = [['step', *tasks]]
    for step in sorted({step for step, _ in by_cell}):
        scores = [_format_cell(by_cell.get((step, task)), best.get(task)) for task in tasks]
        cells.append([f'{step:,}', *scores])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return '\n'.join(
        '  '.join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    )


def _format_cell(row: Row | None, best: Mapping[str, float] | None) -> str:
    if row is None:
        return '-'
    is_best = best and best['step'] == row['step']
    return format_score(row['main_metric'], row['main_score']) + ('*' if is_best else ' ')


def find_best_checkpoints(rows: Iterable[Row]) -> dict[str, Mapping[str, float]]:
    """Returns the step and the score of each task's best checkpoint, the one with the highest main
    score. Ties go to the latest step, as in PromptEOL (`>=`).

    Tasks whose main metric is not a fraction, such as the effect size of a bias test, are left out:
    higher is not better there.
    """
    best: dict[str, Mapping[str, float]] = {}
    for task, series in select_curves(rows).items():
        if series[-1]['main_metric'] not in PLAIN:
            row = max(series, key=lambda row: (row['main_score'], row['step']))
            best[task] = {'step': row['step'], 'score': row['main_score']}
    return best
