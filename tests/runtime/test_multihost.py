"""Several real processes: when one ends, all do, and each says why."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys
import time
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.multihost import join_processes, shared_fate

def main():
    me = int(sys.argv.pop())
    join_processes(sys.argv.pop(), COUNT, me)
    with shared_fate():
        import numpy as np
        from jax.experimental import multihost_utils
        multihost_utils.process_allgather(np.int32(me))
        if me in FAILING:
            time.sleep(1)  # the others wait in the exchange by then
            raise ERROR
        multihost_utils.process_allgather(np.int32(me))
    return 0

sys.exit(main())
"""


def free_address() -> str:
    with socket.socket() as free:
        free.bind(('localhost', 0))
        return f'localhost:{free.getsockname()[1]}'


def run_processes(count: int, failing: tuple[int, ...], error: str) -> list[tuple[int, str]]:
    """(exit status, output) of each process."""
    environment = dict(
        os.environ, XLA_FLAGS='--xla_force_host_platform_device_count=1', PYTHONPATH=str(ROOT)
    )
    script = SCRIPT.replace('COUNT', str(count))
    script = script.replace('FAILING', repr(failing)).replace('ERROR', error)
    command = [sys.executable, '-c', script, free_address()]
    options = {
        'env': environment,
        'stdout': subprocess.PIPE,
        'stderr': subprocess.STDOUT,
        'text': True,
    }
    processes = [subprocess.Popen([*command, str(i)], **options) for i in range(count)]
    outputs = [process.communicate(timeout=100)[0] for process in processes]
    return [
        (process.returncode, output) for process, output in zip(processes, outputs, strict=True)
    ]


@pytest.mark.parametrize('failing', [0, 1])
def test_a_users_mistake_on_one_process_ends_all_with_its_line(failing):
    start = time.time()
    for number, (status, output) in enumerate(
        run_processes(2, (failing,), "UserError('data/x.jsonl:7: not JSON')")
    ):
        said = '' if number == failing else f'process {failing} stopped: '
        assert (
            status == 1 and output.splitlines()[-1] == f'error: {said}data/x.jsonl:7: not JSON'
        ), output
        assert 'Traceback' not in output
    assert time.time() - start < 60  # where nobody is told, it takes the heartbeat's 100 seconds


def test_any_other_error_shows_its_traceback_where_it_happened():
    error = "RuntimeError('the disk is full')"
    for number, (status, output) in enumerate(run_processes(3, (1,), error)):
        assert status == 70 and 'RuntimeError: the disk is full' in output.splitlines()[-1], output
        assert ('Traceback' in output) == (number == 1)


def test_several_that_fail_at_once_end_alike():
    for status, output in run_processes(2, (0, 1), "UserError('no such file')"):
        assert (
            status == 1 and 'no such file' in output.splitlines()[-1] and 'Traceback' not in output
        ), output
