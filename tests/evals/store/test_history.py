"""results.jsonl: no row twice, none lost, and what is read from them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cpt_jax.evals.store.history import (
    add_row,
    best_of,
    curves,
    format_history,
    measured_otherwise,
    read_rows,
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


def test_a_row_of_one_name_is_written_once(tmp_path):
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


def test_a_line_cut_short_anywhere_is_no_row_and_the_next_row_takes_its_place(tmp_path):
    path = tmp_path / 'results.jsonl'
    for step in (1, 2):
        add_row(path, row(step))
    whole = path.read_bytes()
    for cut in range(whole.index(b'\n') + 1, len(whole)):
        path.write_bytes(whole[:cut])
        assert read_rows(path) == [row(1)]
        assert add_row(path, row(2)) and path.read_bytes() == whole


def test_a_line_that_is_no_row_is_told_with_its_number(tmp_path):
    path = tmp_path / 'results.jsonl'
    add_row(path, row(1))
    for line, said in [
        ('{"step": ', r'results.jsonl:2: not JSON'),
        ('{"step": 3}', r'results.jsonl:2: not a row of'),
        ('7', 'not a row'),
    ]:
        path.write_text(json.dumps(row(1)) + f'\n{line}\n')
        with pytest.raises(UserError, match=said):
            read_rows(path)


# Two processes at a time go for the same 120 rows; one of them is killed, again and again, in the
# middle of whatever it does.
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from cpt_jax.storage.locks import claimed, locked
from cpt_jax.evals.store.history import add_row, name_of, read_rows
from tests.evals.store.test_history import row

folder = Path(sys.argv[1])

def work():
    for step in range(120):
        with claimed(folder / f'claim{step}') as mine:
            if mine and name_of(row(step)) not in map(name_of, read_rows(folder / 'rows')):
                with locked(folder / 'lock'):
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


def test_killed_processes_lose_nothing_and_count_nothing_twice(tmp_path):
    assert subprocess.run([sys.executable, '-c', KILLED, str(tmp_path)], cwd=ROOT).returncode == 0
    assert sorted(found['step'] for found in read_rows(tmp_path / 'rows')) == [*range(120)]


def test_a_curve_is_of_one_training_and_one_way_to_measure():
    rows = [
        row(1, 0.1),
        row(2, 0.2, fingerprint='old'),
        row(2, 0.3),
        row(1, 0.4, task='sts/b'),
        row(3, 0.5),
    ]
    scores = {
        task: [(one['step'], one['main_score']) for one in series]
        for task, series in curves(rows).items()
    }
    assert scores == {'sts/a': [(1, 0.1), (2, 0.3), (3, 0.5)], 'sts/b': [(1, 0.4)]}
    # The run went back to step 1, and step 3 is not there again yet.
    again = [*rows, row(2, 0.6, saved='2026-02')]
    assert [(one['step'], one['main_score']) for one in curves(again)['sts/a']] == [
        (1, 0.1),
        (2, 0.6),
    ]
    assert best_of(again)['sts/a'] == {'step': 2, 'score': 0.6}
    assert curves([]) == {}


def test_scores_that_were_measured_otherwise_later_are_told():
    rows = [row(1), row(1, fingerprint='later'), row(1, task='sts/b')]
    assert measured_otherwise(rows, {'sts/a': 'f', 'sts/b': 'f', 'sts/c': 'f'}) == ['sts/a']
    assert (
        measured_otherwise(rows, {'sts/a': 'later'}) == measured_otherwise([], {'sts/a': 'f'}) == []
    )


def test_the_best_is_the_highest_and_of_equal_ones_the_latest():
    rows = [
        row(3, 0.7),
        row(1, 0.2),
        row(2, 0.7),
        row(4, 0.6),
        row(1, 2.0, task='bias/a', metric='effect_size'),
    ]
    assert best_of(rows) == {'sts/a': {'step': 3, 'score': 0.7}}  # more bias is not better
    assert best_of([row(1, -0.2), row(2, -0.3)]) == {'sts/a': {'step': 1, 'score': -0.2}}


def test_the_table():
    rows = [row(10, 0.7), row(2000, 0.25), row(10, 1.234, task='bias/a', metric='effect_size')]
    assert format_history(rows).splitlines() == [
        ' step   sts/a  bias/a',
        '   10  70.00*   1.23 ',
        '2,000  25.00        -',
    ]
