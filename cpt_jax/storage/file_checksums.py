"""Sizes and checksums of the files of a folder, stored in the folder, to notice later damage.

CRC-32 finds every change of up to 32 consecutive bits, and misses one in 2**32 of other accidental
changes. It is as fast as reading the file.
"""

import contextlib
import json
import logging
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from cpt_jax.storage.atomic_write import write_atomically
from cpt_jax.storage.file_stamp import compute_file_stamp

CHECKSUMS = 'checksums.json'
_READ_BYTES = 1 << 22  # read at once


class Checksum(NamedTuple):
    """Size and CRC-32 of a file.

    Attributes:
      size: number of bytes.
      crc32: CRC-32 of all bytes.
      stamp: `compute_file_stamp` of the file, for files that must not change at all; the CRC-32C of
        an object in a bucket; '' otherwise.
    """

    size: int
    crc32: int
    stamp: str = ''

    def add(self, block: bytes) -> 'Checksum':
        """Returns the checksum of a file that continues with `block`."""
        crc32 = zlib.crc32(block, self.crc32)
        return self._replace(size=self.size + len(block), crc32=crc32)


def compute_checksum(path: Path) -> Checksum:
    """Reads a file and returns its size and CRC-32."""
    checksum = Checksum(0, 0)
    with path.open('rb') as file:
        while block := file.read(_READ_BYTES):
            checksum = checksum.add(block)
    return checksum


def is_undamaged(path: Path, expected: Checksum) -> bool:
    """Returns whether a file exists and has the expected size and CRC-32."""
    try:
        if path.stat().st_size != expected.size:
            return False
        return compute_checksum(path).crc32 == expected.crc32
    except OSError:
        return False


def read_checksums(folder: Path) -> dict[str, Checksum]:
    """Returns the checksums in a folder, by file name; {} if there are none."""
    path = folder / CHECKSUMS
    try:
        stored = json.loads(path.read_bytes())
        return {name: Checksum(int(row[0]), int(row[1]), *row[2:]) for name, row in stored.items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError, AttributeError, IndexError) as error:
        logging.warning('%s cannot be read (%s): files are used without it', path, error)
        return {}


def write_checksums(folder: Path, checksums: Mapping[str, Checksum]) -> None:
    """Writes the checksums of a folder's files, by file name."""
    write_atomically(folder / CHECKSUMS, encode_checksums(checksums))


def compute_stamped_checksum(path: Path) -> Checksum:
    """Reads a file that must not change any more, and returns its checksum with its stamp."""
    return compute_checksum(path)._replace(stamp=compute_file_stamp(path))


def add_checksums(folder: Path, paths: Iterable[Path]) -> None:
    """Adds the stamped checksums of files to those of their folder."""
    added = {path.name: compute_stamped_checksum(path) for path in paths}
    write_checksums(folder, read_checksums(folder) | added)


def find_damaged(folder: Path, names: Iterable[str], verify: bool = False) -> list[str]:
    """Returns the names of files that are missing or not as they were written.

    A file with the stamp that it had is not read.

    Args:
      folder: folder of the files and of their stamped checksums.
      names: names of the files.
      verify: whether to read all files in full.
    """
    checksums = read_checksums(folder)
    damaged = []
    moved = []
    for name in names:
        path = folder / name
        expected = checksums.get(name, Checksum(-1, 0))
        stamp = compute_file_stamp(path) if path.is_file() else ''
        if not verify and stamp and stamp == expected.stamp:
            continue
        # Another stamp does not mean another content: somebody may have copied the folder.
        if is_undamaged(path, expected):
            moved.append(path)
        else:
            damaged.append(name)
    if moved and not verify:
        with contextlib.suppress(OSError):  # in a folder that cannot be written
            add_checksums(folder, moved)
    return damaged


def encode_checksums(checksums: Mapping[str, Checksum]) -> bytes:
    """Returns the content of the file of checksums."""
    return json.dumps(checksums, indent=1, sort_keys=True).encode() + b'\n'
