"""Checks the types of the package with mypy, as set up in pyproject.toml."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_mypy_finds_no_error():
    """mypy is a test and not a separate step so that it runs in parallel with the other tests:
    without its cache it takes most of a minute.
    """
    done = subprocess.run(
        [sys.executable, '-m', 'mypy'], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
