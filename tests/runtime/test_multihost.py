"""Runs with several real processes: when one fails, all exit and print the reason."""

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from cpt_jax.runtime import multihost
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.multihost import check_equal_devices

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys
import time
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.multihost import join_processes, exit_together

def main():
    me = int(sys.argv.pop())
    join_processes(sys.argv.pop(), COUNT, me)
    with exit_together():
        import numpy as np
        from jax.experimental import multihost_utils
        multihost_utils.process_allgather(np.int32(me))
        if me in FAILING:
            time.sleep(1)  # the others are in the collective operation by then
            raise ERROR
        multihost_utils.process_allgather(np.int32(me))
    return 0

sys.exit(main())
"""


def test_different_numbers_of_devices_are_refused():
    def make_devices(*counts):
        return [SimpleNamespace(process_index=i) for i, n in enumerate(counts) for _ in range(n)]

    check_equal_devices(make_devices(4, 4))
    with pytest.raises(UserError, match=r'different numbers of devices \(3, 5\): give each'):
        check_equal_devices(make_devices(3, 5))


def test_first_process_cleans_up_when_the_others_have(monkeypatch):
    """The others may have files open in a folder that the first one removes."""
    events = []
    me = threading.local()

    class Exited(BaseException):
        pass

    def exit_process(status):
        events.append(('exit', me.index))
        raise Exited

    heard = {}
    store = SimpleNamespace(
        key_value_set=lambda key, value, **options: heard.update({key: value}),
        key_value_dir_get=lambda key: [*heard],
    )
    monkeypatch.setattr(jax, 'process_index', lambda: me.index)
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(os, '_exit', exit_process)
    monkeypatch.setattr(multihost, '_exiting', threading.Semaphore(2))
    monkeypatch.setattr(multihost, '_POLL_SECONDS', 0.02)

    def clean_up():
        time.sleep(0.2 * me.index)
        events.append(('clean up', me.index))

    monkeypatch.setattr(multihost, '_cleanups', [clean_up])

    def fail(index):
        me.index = index
        with suppress(Exited):
            multihost._exit_process(store, 'a reason', 1)

    threads = [threading.Thread(target=fail, args=[index]) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert events.index(('clean up', 1)) < events.index(('clean up', 0))
    assert len(events) == 4


def find_free_address() -> str:
    """Returns localhost with a free port."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        return f'localhost:{free.getsockname()[1]}'


def run_processes(count: int, failing: tuple[int, ...], error: str) -> list[tuple[int, str]]:
    """Runs SCRIPT in `count` processes; returns (exit status, output) of each."""
    environment = dict(
        os.environ, XLA_FLAGS='--xla_force_host_platform_device_count=1', PYTHONPATH=str(ROOT)
    )
    script = SCRIPT.replace('COUNT', str(count))
    script = script.replace('FAILING', repr(failing)).replace('ERROR', error)
    command = [sys.executable, '-c', script, find_free_address()]
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
def test_user_error_on_one_process_ends_all_with_its_message(failing):
    start = time.time()
    for number, (status, output) in enumerate(
        run_processes(2, (failing,), "UserError('data/x.jsonl:7: not JSON')")
    ):
        prefix = '' if number == failing else f'process {failing} stopped: '
        assert (
            status == 1 and output.splitlines()[-1] == f'error: {prefix}data/x.jsonl:7: not JSON'
        ), output
        assert 'Traceback' not in output
    assert time.time() - start < 60  # without a message it takes the heartbeat's 100 seconds


def test_other_error_prints_its_traceback_on_its_process_only():
    error = "RuntimeError('the disk is full')"
    for number, (status, output) in enumerate(run_processes(3, (1,), error)):
        assert status == 70 and 'RuntimeError: the disk is full' in output.splitlines()[-1], output
        assert ('Traceback' in output) == (number == 1)


def test_processes_that_fail_together_print_the_message_without_traceback():
    for status, output in run_processes(2, (0, 1), "UserError('no such file')"):
        assert (
            status == 1 and 'no such file' in output.splitlines()[-1] and 'Traceback' not in output
        ), output
