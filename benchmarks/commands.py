"""Commands of launch/ that run once: their folder has a row of each attempt."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cpt_jax.storage.json_rows import append_row, read_complete_rows

ROOT = Path(__file__).parents[1]
COMMANDS = 'commands.jsonl'  # the commands and their attempts, in their folder

# Function from the arguments of Python and a log file to the exit status and processor seconds.
Run = Callable[[Sequence[str], Path], tuple[int, float]]


class CommandFailed(Exception):
    """A command did not succeed.

    Attributes:
      status: its exit status.
    """

    def __init__(self, arguments: Sequence[str], status: int, log: Path):
        lines = log.read_text(errors='replace').strip().splitlines()
        super().__init__(f'{shlex.join(arguments)}: status {status}: {"".join(lines[-1:])}; {log}')
        self.status = status


def run_command(arguments: Sequence[str], log: Path) -> tuple[int, float]:
    """Runs a program of launch/, and passes SIGTERM on to it.

    Args:
      arguments: arguments of Python.
      log: file to which the program's output is appended.

    Returns:
      The exit status and the processor seconds.
    """
    with log.open('ab') as file:
        process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=file, stderr=file)
        before = signal.signal(signal.SIGTERM, lambda *_: os.kill(process.pid, signal.SIGTERM))
        try:
            _, state, usage = os.wait4(process.pid, 0)
        finally:
            signal.signal(signal.SIGTERM, before)
    process.returncode = os.waitstatus_to_exitcode(state)
    return process.returncode, usage.ru_utime + usage.ru_stime


class Commands:
    """The commands in a folder.

    Attributes:
      folder: the folder, created with the first command.
    """

    def __init__(self, folder: Path, run: Run = run_command):
        self.folder = folder
        self._run = run

    def finish(self, name: str, arguments: Sequence[str]) -> float:
        """Runs a command, unless the one of that name has finished earlier.

        Returns:
          The processor seconds that it took now.

        Raises:
          CommandFailed: the program failed or was stopped.
        """
        if self.is_finished(name):
            return 0.0
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / f'{name}.log'
        start = time.perf_counter()
        status, processor_seconds = self._run(arguments, log)
        row = {
            'name': name,
            'status': status,
            'seconds': round(time.perf_counter() - start, 1),
            'processor_seconds': round(processor_seconds, 1),
            'arguments': list(arguments),
        }
        append_row(self.folder / COMMANDS, row)
        if status:
            raise CommandFailed(arguments, status, log)
        return processor_seconds

    def is_finished(self, name: str) -> bool:
        """Returns whether a command has finished."""
        return any(row['name'] == name and row['status'] == 0 for row in self.read_rows())

    def sum_seconds(self, *names: str, kind: str = 'processor_seconds') -> float:
        """Returns the seconds of some commands, with attempts that were stopped."""
        return round(sum(row[kind] for row in self.read_rows() if row['name'] in names), 1)

    def read_rows(self) -> list[Any]:
        """Returns the row of each attempt."""
        return [row for _, row in read_complete_rows(self.folder / COMMANDS)]
