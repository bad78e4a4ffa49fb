"""Stamps of files: strings that change when a file's content changes, for use in cache keys."""

import os
from hashlib import blake2b
from pathlib import Path

from cpt_jax.storage.mounts import is_on_slow_mount

# A stamp hashes this many blocks of this many bytes: the first, the last, and evenly spaced ones.
_BLOCKS = 16
_BLOCKS_ON_SLOW_MOUNT = 2
_BLOCK_BYTES = 4096
_READ_BYTES = 1 << 22  # read at once, if all bytes are hashed


def compute_file_stamp(path: Path, verify: bool = False) -> str:
    """Returns 32 hex digits that change when the file changes.

    The stamp covers the size, the times of the last change of content and of metadata, the inode
    and 16 blocks of 4 KiB. Programs that replace a file and keep its modification time (cp -p,
    rsync -t, tar) change the inode or the time of the metadata.

    Args:
      path: the file.
      verify: whether to hash all bytes instead of 16 blocks.
    """
    is_slow = is_on_slow_mount(path)
    digest = blake2b(digest_size=16)
    with path.open('rb', buffering=0) as file:
        stat = os.fstat(file.fileno())
        state = [stat.st_size, stat.st_mtime_ns]
        # A FUSE mount assigns new inodes, so a stamp that covers them would change at each start.
        if not is_slow:
            state += [stat.st_ctime_ns, stat.st_ino]
        digest.update(repr((state, verify)).encode())
        blocks = _BLOCKS_ON_SLOW_MOUNT if is_slow else _BLOCKS
        if verify or stat.st_size <= blocks * _BLOCK_BYTES:
            while data := file.read(_READ_BYTES):
                digest.update(data)
        else:
            last = stat.st_size - _BLOCK_BYTES
            for i in range(blocks):
                file.seek(last * i // (blocks - 1))
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()
