"""Locks: one at a time, and none of the dead."""

import subprocess
import sys
from pathlib import Path

import pytest

from cpt_jax.storage.locks import claimed, locked

ROOT = Path(__file__).parents[2]
# Each process does piece after piece as often as it gets the claim, and counts in a way that only
# one at a time can.
WORK = """
import sys
from pathlib import Path
from cpt_jax.storage.locks import claimed
folder, done = Path(sys.argv[1]), 0
while done < 150:
    with claimed(folder / 'claims' / 'piece') as mine:
        if mine:
            count = folder / 'count'
            count.write_text(str(int(count.read_text() or 0) + 1))
            done += 1
"""


def start(code: str, *arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, '-c', code, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE
    )


def test_a_claim_has_one_holder_and_goes_with_its_file(tmp_path):
    path = tmp_path / 'new' / 'claim'
    with claimed(path) as first, claimed(path) as second:
        assert first and not second and path.exists()
    assert not path.exists()
    with pytest.raises(KeyError), claimed(path):
        raise KeyError
    assert not path.exists()
    with claimed(path) as mine:
        assert mine


def test_processes_that_take_turns_never_meet(tmp_path):
    (tmp_path / 'count').touch()
    processes = [start(WORK, tmp_path) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (tmp_path / 'count').read_text() == '450'


def test_the_claims_and_locks_of_a_killed_process_are_free(tmp_path):
    code = """
import sys, time
from pathlib import Path
from cpt_jax.storage.locks import claimed, locked
with claimed(Path(sys.argv[1])), locked(Path(sys.argv[2])):
    print('has them', flush=True)
    time.sleep(100)
"""
    process = start(code, tmp_path / 'claim', tmp_path / 'lock')
    process.stdout.readline()
    with claimed(tmp_path / 'claim') as mine:
        assert not mine
    process.kill()
    process.wait()
    assert (tmp_path / 'claim').exists()
    with claimed(tmp_path / 'claim') as mine, locked(tmp_path / 'lock'):
        assert mine
    assert not (tmp_path / 'claim').exists()
