"""Two processes outside of training steps: a SIGTERM to one, and their end."""

import socket
import subprocess
import sys

# The second process gets a SIGTERM in its fourth pause; both say in which one they noticed.
PROGRAM = """
import os, signal, sys, time
import jax
from cpt_jax.runtime.mesh import make_mesh
from cpt_jax.runtime.preemption import Preempted, Preemption
process = int(sys.argv[2])
jax.distributed.initialize(sys.argv[1], 2, process)
preemption = Preemption()
assert not preemption.reached(1)
with jax.set_mesh(make_mesh()):
    for pause in range(400):
        if pause == 3 and process == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.02 * process)  # one is faster
        try:
            preemption.check()
        except Preempted:
            print('noticed in', pause, preemption.asked, preemption.reached(1))
            break
"""


# Listens so often that its thread is within the runtime's code most of the time.
ENDING = """
import sys, time
import jax
from cpt_jax.runtime import multihost
multihost._POLL_SECONDS = 1e-4
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
with multihost.shared_fate():
    time.sleep(0.1)
sys.exit(42)
"""


def two_processes(program: str) -> list[tuple[int, str, str]]:
    """Status, output and errors of each."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        address = f'localhost:{free.getsockname()[1]}'
    command, pipe = [sys.executable, '-c', program, address], subprocess.PIPE
    both = [
        subprocess.Popen([*command, str(i)], stdout=pipe, stderr=pipe, text=True) for i in range(2)
    ]
    said = [process.communicate(timeout=120) for process in both]
    return [(process.returncode, *texts) for process, texts in zip(both, said, strict=True)]


def test_all_processes_notice_in_the_same_pause():
    said = []
    for status, output, errors in two_processes(PROGRAM):
        assert status == 0, errors
        said += [line.split() for line in output.splitlines() if line.startswith('noticed')]
    assert (
        len(said) == 2
        and said[0] == said[1]
        and said[0][3:] == ['True', 'True']
        and 3 <= int(said[0][2]) < 399
    )


def test_the_listening_thread_does_not_abort_a_process_that_ends():
    for status, _, errors in two_processes(ENDING) + two_processes(ENDING):
        assert status == 42, errors
