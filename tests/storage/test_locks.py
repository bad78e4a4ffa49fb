"""Locks have one holder at a time, and the locks of killed processes are free."""

import subprocess
import sys
from pathlib import Path

import pytest

from cpt_jax.storage.locks import try_lock, wait_for_lock

ROOT = Path(__file__).parents[2]
# Each process takes the lock 150 times and increments a counter in a file, which loses increments
# if two processes do it at the same time.
WORK = """
import sys
from pathlib import Path
from cpt_jax.storage.locks import try_lock
folder, done = Path(sys.argv[1]), 0
while done < 150:
    with try_lock(folder / 'claims' / 'piece') as mine:
        if mine:
            count = folder / 'count'
            count.write_text(str(int(count.read_text() or 0) + 1))
            done += 1
"""


def start_process(code: str, *arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, '-c', code, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE
    )


def test_lock_has_one_holder_and_its_file_is_removed(tmp_path):
    path = tmp_path / 'new' / 'claim'
    with try_lock(path) as first, try_lock(path) as second:
        assert first and not second and path.exists()
    assert not path.exists()
    with pytest.raises(KeyError), try_lock(path):
        raise KeyError
    assert not path.exists()
    with try_lock(path) as mine:
        assert mine


def test_processes_never_hold_the_lock_together(tmp_path):
    (tmp_path / 'count').touch()
    processes = [start_process(WORK, tmp_path) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (tmp_path / 'count').read_text() == '450'


def test_locks_of_a_killed_process_are_free(tmp_path):
    code = """
import sys, time
from pathlib import Path
from cpt_jax.storage.locks import try_lock, wait_for_lock
with try_lock(Path(sys.argv[1])), wait_for_lock(Path(sys.argv[2])):
    print('holds both', flush=True)
    time.sleep(100)
"""
    process = start_process(code, tmp_path / 'claim', tmp_path / 'lock')
    process.stdout.readline()
    with try_lock(tmp_path / 'claim') as mine:
        assert not mine
    process.kill()
    process.wait()
    assert (tmp_path / 'claim').exists()
    with try_lock(tmp_path / 'claim') as mine, wait_for_lock(tmp_path / 'lock'):
        assert mine
    assert not (tmp_path / 'claim').exists()
