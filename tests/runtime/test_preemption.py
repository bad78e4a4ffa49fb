"""Two processes between training steps: SIGTERM to one of them, and their exit."""

import socket
import subprocess
import sys

# Process 1 sends itself SIGTERM in its fourth pause; both print the pause in which they stop.
PROGRAM = """
import os, signal, sys, time
import jax
from cpt_jax.runtime.mesh import make_mesh
from cpt_jax.runtime.preemption import Preempted, Preemption
process = int(sys.argv[2])
jax.distributed.initialize(sys.argv[1], 2, process)
preemption = Preemption()
assert not preemption.should_stop_after(1)
with jax.set_mesh(make_mesh()):
    for pause in range(400):
        if pause == 3 and process == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.02 * process)  # process 0 is faster
        try:
            preemption.check()
        except Preempted:
            print('stops in', pause, preemption.requested, preemption.should_stop_after(1))
            break
"""


# Polls so often that the thread is in C++ code most of the time.
EXIT_WHILE_POLLING = """
import sys, time
import jax
from cpt_jax.runtime import multihost
multihost._POLL_SECONDS = 1e-4
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
with multihost.exit_together():
    time.sleep(0.1)
sys.exit(42)
"""


def run_two_processes(program: str) -> list[tuple[int, str, str]]:
    """Runs a program in two processes; returns (exit status, stdout, stderr) of each."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        address = f'localhost:{free.getsockname()[1]}'
    command = [sys.executable, '-c', program, address]
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen([*command, str(i)], stdout=pipe, stderr=pipe, text=True) for i in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, outputs, strict=True)]


def test_all_processes_stop_in_the_same_pause():
    stops = []
    for status, output, errors in run_two_processes(PROGRAM):
        assert status == 0, errors
        stops += [line.split() for line in output.splitlines() if line.startswith('stops in')]
    assert len(stops) == 2
    assert stops[0] == stops[1]
    assert stops[0][3:] == ['True', 'True']
    assert 3 <= int(stops[0][2]) < 399


def test_polling_thread_does_not_abort_a_process_that_exits():
    for status, _, errors in run_two_processes(EXIT_WHILE_POLLING) + run_two_processes(
        EXIT_WHILE_POLLING
    ):
        assert status == 42, errors
