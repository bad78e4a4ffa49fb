"""Old copies of remote files are removed when a new one does not fit."""

import os
import subprocess
import sys

import pytest

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage import cached_copies
from cpt_jax.storage.cached_copies import LIMIT, make_room
from cpt_jax.storage.locks import wait_for_lock

USE = """
import sys
from pathlib import Path
from cpt_jax.storage.cached_copies import mark_as_used
mark_as_used(Path(sys.argv[1]))
print('used', flush=True)
sys.stdin.read()
"""


@pytest.fixture
def copies(cache, monkeypatch):
    """Four copies of 1,000 bytes; the first one was not used for the longest time."""
    monkeypatch.setattr(cached_copies, '_used', {})
    entries = [cache / 'remote' / name for name in 'dcba']
    for age, entry in enumerate(entries):
        (entry / 'data').mkdir(parents=True)
        (entry / 'data' / 'file').write_bytes(b'x' * 1000)
        for name in ('lock', 'in_use'):
            (entry / name).touch()
        os.utime(entry / 'in_use', (1000 + age, 1000 + age))
    return entries


def list_copied(entries) -> list[bool]:
    return [(entry / 'data' / 'file').exists() for entry in entries]


def test_oldest_copies_make_room_within_the_limit(copies, monkeypatch):
    monkeypatch.setenv(LIMIT, '4.5e-6')
    make_room(500, '--model x')
    assert list_copied(copies) == [True] * 4
    make_room(1600, '--model x')
    assert list_copied(copies) == [False, False, True, True]
    with pytest.raises(UserError, match=r'^--model x: .* CPT_JAX_COPIES_GB allows 0.0 GB'):
        make_room(5000, '--model x')
    assert list_copied(copies) == [False, False, True, True]  # nothing is removed in vain


def test_full_disk_makes_room_without_a_limit(copies, monkeypatch):
    def get_free_bytes(folder):
        return 500 + 1000 * (4 - sum(list_copied(copies)))

    monkeypatch.setattr(cached_copies, 'get_free_bytes', get_free_bytes)
    make_room(400, '--model x')
    assert list_copied(copies) == [True] * 4
    make_room(1400, '--model x')
    assert list_copied(copies) == [False, True, True, True]


def test_copy_that_a_program_uses_or_fills_is_kept(copies, monkeypatch):
    command = [sys.executable, '-c', USE, str(copies[0])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b'used\n'
        os.utime(copies[0] / 'in_use', (1, 1))
        cached_copies.mark_as_used(copies[1])
        monkeypatch.setenv(LIMIT, '3.5e-6')
        with wait_for_lock(copies[2] / 'lock'):
            make_room(500, '--model x')
        assert list_copied(copies) == [True, True, True, False]
        other.communicate()
    make_room(1500, '--model x')
    assert list_copied(copies) == [False, True, True, False]


def test_limit_must_be_a_number(cache, monkeypatch):
    monkeypatch.setenv(LIMIT, 'lots')
    with pytest.raises(UserError, match='CPT_JAX_COPIES_GB=lots: must be a number of GB'):
        make_room(1, '--model x')
