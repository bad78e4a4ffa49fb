"""Starts the programs of launch/ for tests, with the command line of a user.

Importing JAX and its libraries takes almost two seconds, and the suite starts about a hundred
programs. They are therefore forked from a process that has imported the modules they share
(multiprocessing's fork server). That process has not initialized a JAX backend or defined a flag.
tests/cli/test_program.py starts programs in a new interpreter.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.conftest import FAST_COMPILE_FLAGS

ROOT = Path(__file__).parents[1]
_PRELOADED = (
    'tests.programs',
    'cpt_jax.training.loop',
    'cpt_jax.embed.load',
    'cpt_jax.evals.registry',
    'cpt_jax.exporting.directory',
    'cpt_jax.exporting.check',
)
CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload(list(_PRELOADED))


class Program:
    """A running program, with the part of the interface of subprocess.Popen that tests use."""

    def __init__(
        self,
        script: Path,
        flags: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str],
        split_errors: bool = False,
    ):
        """Starts the program.

        Args:
          script: path of the program.
          flags: its command-line arguments.
          cwd: its working directory.
          environment: all its environment variables.
          split_errors: whether to capture stderr separately from stdout.
        """
        self._folder = tempfile.TemporaryDirectory()
        self._output = Path(self._folder.name, 'output')
        self._errors = Path(self._folder.name, 'errors') if split_errors else None
        arguments = script, tuple(flags), cwd, dict(environment), self._output, self._errors
        self._process = CONTEXT.Process(target=_run_script, args=arguments, daemon=True)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            self.kill()
            raise TimeoutError(f'still running after {timeout} s:\n{_read(self._output)}')
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str | None]:
        """Waits for the end; returns stdout, and stderr if it is captured separately."""
        self.wait(timeout)
        errors = _read(self._errors) if self._errors else None
        return _read(self._output), errors


def start_program(
    name: str, *flags: str, cwd: Path, devices: int = 1, split_errors: bool = False
) -> Program:
    """Starts launch/`name`.py on `devices` simulated CPU devices."""
    environment = make_environment(devices)
    return Program(ROOT / 'launch' / f'{name}.py', flags, cwd, environment, split_errors)


def make_environment(devices: int) -> dict[str, str]:
    """Returns the environment of a program on `devices` simulated CPU devices."""
    xla_flags = f'{FAST_COMPILE_FLAGS} --xla_force_host_platform_device_count={devices}'
    return os.environ | {'XLA_FLAGS': xla_flags, 'JAX_PLATFORMS': 'cpu', 'COLUMNS': '200'}


def finish(program: Program, status: int = 0) -> str:
    """Waits for the end of a program; returns its output.

    Raises:
      AssertionError: its exit status is not `status`.
    """
    output, _ = program.communicate(timeout=200)
    assert program.returncode == status, output
    return output


def run_program(name: str, *flags: str, cwd: Path) -> tuple[int, str, str]:
    """Runs launch/`name`.py; returns its exit status, stdout and stderr."""
    program = start_program(name, *flags, cwd=cwd, split_errors=True)
    output, errors = program.communicate(timeout=200)
    return program.returncode, output, errors


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ''


def _run_script(
    script: Path,
    flags: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
    output: Path,
    errors: Path | None,
) -> None:
    """Runs the program in the forked process, with its own output files and environment."""
    for number, path in ((1, output), (2, errors or output)):
        with open(path, 'ab', buffering=0) as file:
            os.dup2(file.fileno(), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [str(script), *flags]
    try:
        runpy.run_path(str(script), run_name='__main__')
    finally:
        atexit._run_exitfuncs()  # multiprocessing does not call them
