"""The number of files that a process may have open."""

import resource

from cpt_jax.runtime.errors import UserError

_OTHER_FILES = 200  # files that a program opens beside those of its data
_MOST = 1 << 20


def allow_open_files(files: int, what: str) -> None:
    """Raises this process's soft limit of open files to the hard limit of the machine.

    The usual soft limit is 1,024, and readers of record files keep each file open.

    Args:
      files: number of files to open.
      what: what has these files, for the message.

    Raises:
      UserError: the hard limit is too low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST if hard == resource.RLIM_INFINITY else hard
    if files + _OTHER_FILES > most:
        raise UserError(
            f'{what} has {files:,} files, and a process of this machine may open {most:,}: raise '
            f'the hard limit (ulimit -Hn), or write the data into fewer files'
        )
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
