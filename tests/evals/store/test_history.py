"""results.jsonl: no row is lost or duplicated, and curves and best checkpoints are read from it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cpt_jax.evals.store.history import (
    add_row,
    find_best_checkpoints,
    find_remeasured_tasks,
    format_history,
    read_rows,
    select_curves,
)
from cpt_jax.runtime.errors import UserError

ROOT = Path(__file__).parents[3]


def row(
    step: int,
    score: float = 0.5,
    task: str = 'sts/a',
    saved: str = '',
    fingerprint: str = 'f',
    metric: str = 'spearman',
) -> dict:
    return {
        'step': step,
        'saved': saved or f'2026-01-01T{step:04d}',
        'task': task,
        'fingerprint': fingerprint,
        'main_score': score,
        'main_metric': metric,
        'metrics': {metric: score},
        'n': 7,
        'seconds': 1.5,
        'time': '2026-01-01T00:00:00+00:00',
    }


def test_each_key_has_one_row(tmp_path):
    path = tmp_path / 'results.jsonl'
    assert read_rows(path) == []
    different = [
        row(1),
        row(2),
        row(1, task='sts/b'),
        row(1, saved='later'),
        row(1, fingerprint='g'),
    ]
    assert all(add_row(path, one) for one in different)
    assert not any(add_row(path, one | {'main_score': 0.9}) for one in different)
    assert (
        read_rows(path) == different == [json.loads(line) for line in path.read_text().splitlines()]
    )


def test_incomplete_line_is_skipped_and_overwritten(tmp_path):
    path = tmp_path / 'results.jsonl'
    for step in (1, 2):
        add_row(path, row(step))
    whole = path.read_bytes()
    for cut in range(whole.index(b'\n') + 1, len(whole)):
        path.write_bytes(whole[:cut])
        assert read_rows(path) == [row(1)]
        assert add_row(path, row(2)) and path.read_bytes() == whole


def test_invalid_line_is_reported_with_its_number(tmp_path):
    path = tmp_path / 'results.jsonl'
    add_row(path, row(1))
    for line, message in [
        ('{"step": ', r'results.jsonl:2: not JSON'),
        ('{"step": 3}', r'results.jsonl:2: not a row of'),
        ('7', 'not a row'),
        (json.dumps(row(2) | {'step': '2'}), 'not a row'),
        (json.dumps(row(2) | {'main_score': None}), 'not a row'),
        (json.dumps(row(2) | {'metrics': [1]}), 'not a row'),
    ]:
        path.write_text(json.dumps(row(1)) + f'\n{line}\n')
        with pytest.raises(UserError, match=message):
            read_rows(path)


# Two processes write the same 120 rows. One of them is killed at a random time and restarted, 12
# times.
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from cpt_jax.storage.locks import try_lock, wait_for_lock
from cpt_jax.evals.store.history import add_row, get_row_key, read_rows
from tests.evals.store.test_history import row

folder = Path(sys.argv[1])

def work():
    for step in range(120):
        with try_lock(folder / f'claim{step}') as mine:
            if mine and get_row_key(row(step)) not in map(get_row_key, read_rows(folder / 'rows')):
                with wait_for_lock(folder / 'lock'):
                    assert add_row(folder / 'rows', row(step))
    os._exit(0)

def start():
    return os.fork() or work()

random.seed(0)
other = start()
for _ in range(12):
    process = start()
    time.sleep(random.uniform(0.002, 0.03))
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
last = start()
sys.exit(os.waitpid(other, 0)[1] + os.waitpid(last, 0)[1])
"""


def test_killed_processes_neither_lose_nor_duplicate_rows(tmp_path):
    assert subprocess.run([sys.executable, '-c', KILLED, str(tmp_path)], cwd=ROOT).returncode == 0
    assert sorted(found['step'] for found in read_rows(tmp_path / 'rows')) == [*range(120)]


def test_curve_has_rows_of_one_training_and_one_fingerprint():
    rows = [
        row(1, 0.1),
        row(2, 0.2, fingerprint='old'),
        row(2, 0.3),
        row(1, 0.4, task='sts/b'),
        row(3, 0.5),
    ]
    scores = {
        task: [(one['step'], one['main_score']) for one in series]
        for task, series in select_curves(rows).items()
    }
    assert scores == {'sts/a': [(1, 0.1), (2, 0.3), (3, 0.5)], 'sts/b': [(1, 0.4)]}
    # The run resumed from step 1 and has not reached step 3 again.
    again = [*rows, row(2, 0.6, saved='2026-02')]
    assert [(one['step'], one['main_score']) for one in select_curves(again)['sts/a']] == [
        (1, 0.1),
        (2, 0.6),
    ]
    assert find_best_checkpoints(again)['sts/a'] == {'step': 2, 'score': 0.6}
    assert select_curves([]) == {}


def test_tasks_measured_differently_later_are_found():
    rows = [row(1), row(1, fingerprint='later'), row(1, task='sts/b')]
    assert find_remeasured_tasks(rows, {'sts/a': 'f', 'sts/b': 'f', 'sts/c': 'f'}) == ['sts/a']
    assert (
        find_remeasured_tasks(rows, {'sts/a': 'later'})
        == find_remeasured_tasks([], {'sts/a': 'f'})
        == []
    )


def test_best_checkpoint_has_the_highest_score_and_latest_step():
    rows = [
        row(3, 0.7),
        row(1, 0.2),
        row(2, 0.7),
        row(4, 0.6),
        row(1, 2.0, task='bias/a', metric='effect_size'),
    ]
    assert find_best_checkpoints(rows) == {
        'sts/a': {'step': 3, 'score': 0.7}
    }  # without the bias test
    assert find_best_checkpoints([row(1, -0.2), row(2, -0.3)]) == {
        'sts/a': {'step': 1, 'score': -0.2}
    }


def test_table_marks_the_best_checkpoints():
    rows = [row(10, 0.7), row(2000, 0.25), row(10, 1.234, task='bias/a', metric='effect_size')]
    assert format_history(rows).splitlines() == [
        ' step   sts/a  bias/a',
        '   10  70.00*   1.23 ',
        '2,000  25.00        -',
    ]
