"""Which file system a path is on."""

import functools
import os
from pathlib import Path

# File systems on which each read may take a round trip to another machine.
_SLOW_TYPES = ('fuse', 'nfs', 'cifs', 'smb', '9p', 'ceph', 'lustre', 'afs', 'gpfs', 'beegfs')
# File systems in user space that store files on a local disk.
_LOCAL_TYPES = ('fuseblk', 'fuse.fuse-overlayfs')
_MOUNTS = Path('/proc/self/mounts')


def is_on_slow_mount(path: Path) -> bool:
    """Returns whether a path is on a network or FUSE file system; False where Linux's list of
    mounts does not exist.
    """
    real = os.path.realpath(path)
    inside = [
        (folder, kind)
        for folder, kind in _read_mounts()
        if real == folder or real.startswith(folder.rstrip('/') + '/')
    ]
    # The last of the deepest mount points is the one that is visible.
    _, kind = max(inside, key=lambda mount: len(mount[0]), default=('', ''))
    return kind.startswith(_SLOW_TYPES) and kind not in _LOCAL_TYPES


@functools.lru_cache(1)
def _read_mounts() -> tuple[tuple[str, str], ...]:
    """Returns (mount point, type) of each mounted file system, the latest ones first."""
    try:
        lines = _MOUNTS.read_text('utf-8', 'surrogateescape').splitlines()
    except OSError:
        return ()
    fields = [line.split(' ') for line in lines]
    # The kernel writes a space, tab, newline or backslash in a path as an octal escape.
    return tuple((_decode_octal(row[1]), row[2]) for row in reversed(fields))


def _decode_octal(text: str) -> str:
    for character in ' \t\n\\':
        text = text.replace(f'\\{ord(character):03o}', character)
    return text
