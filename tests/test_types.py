"""The types of the package, checked by mypy as pyproject.toml sets it up."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_mypy_finds_no_error():
    """Here rather than as a step of its own before the tests, so that it runs beside them: without
    its cache it takes a processor for most of a minute.
    """
    done = subprocess.run(
        [sys.executable, '-m', 'mypy'], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
