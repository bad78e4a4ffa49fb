"""SIGTERM to a training program before it has imported JAX."""

import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Sends itself SIGTERM in the first import after the handler is installed, when JAX is not imported.
PROGRAM = """
import importlib.abc, os, runpy, signal, sys

class Kill(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == 'cpt_jax.cli.train':
            assert 'jax' not in sys.modules
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                sys.exit(3)

sys.path.insert(0, sys.argv[1])
sys.meta_path.insert(0, Kill())
sys.argv = ['train.py']
runpy.run_path(sys.path[0] + '/launch/train.py', run_name='__main__')
"""


def test_sigterm_before_jax_is_imported_exits_with_42():
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM, str(ROOT)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 42, done.stderr
    assert done.stderr == 'SIGTERM before training: run the same command again\n'


def test_handler_is_not_installed_by_an_import():
    before = signal.getsignal(signal.SIGTERM)
    import cpt_jax.cli.train  # noqa: F401

    assert signal.getsignal(signal.SIGTERM) is before
