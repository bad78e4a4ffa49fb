"""Which code made a file."""

import subprocess
from pathlib import Path

import cpt_jax


def code_version() -> str:
    """The package's version, and the commit where the code lies in a git checkout ("+" behind it: with changes of its own)."""
    root = Path(__file__).parents[1]
    try:
        described = subprocess.run(
            ['git', 'describe', '--always', '--abbrev=12', '--exclude=*', '--dirty=+'], cwd=root, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return cpt_jax.__version__
    return f'{cpt_jax.__version__} {described.stdout.strip()}'.strip()
