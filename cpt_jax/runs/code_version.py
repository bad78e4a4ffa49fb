"""Which code made a file."""

import functools
import subprocess
from pathlib import Path

import cpt_jax

# The commit, where `git archive` wrote this file (.gitattributes); as it stands, elsewhere.
_ARCHIVED = '$Format:%h$'


@functools.cache
def code_version() -> str:
    """The package's version, and the commit that the code is of; "+" behind it: a git checkout with
    changes of its own.
    """
    if not _ARCHIVED.startswith('$'):
        return f'{cpt_jax.__version__} {_ARCHIVED}'
    root = Path(__file__).parents[2]
    if not (root / '.git').exists():  # an installed package, perhaps within somebody's repository
        return cpt_jax.__version__
    try:
        described = subprocess.run(
            ['git', 'describe', '--always', '--abbrev=12', '--exclude=*', '--dirty=+'],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return cpt_jax.__version__
    return f'{cpt_jax.__version__} {described.stdout.strip()}'.strip()
