"""The version of the code, which is stored in the files it writes."""

import functools
import subprocess
from pathlib import Path

import cpt_jax

# `git archive` replaces the placeholder by the commit (export-subst in .gitattributes).
_ARCHIVED = '$Format:%h$'


@functools.cache
def get_code_version() -> str:
    """Returns the version of the package and the commit, such as '0.1.0 3f2a9c1b04de'.

    A '+' after the commit means uncommitted changes. Without a git checkout or an archive of one,
    only the version is returned.
    """
    if not _ARCHIVED.startswith('$'):
        return f'{cpt_jax.__version__} {_ARCHIVED}'
    root = Path(__file__).parents[2]
    if not (root / '.git').exists():  # an installed package, perhaps inside another repository
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
