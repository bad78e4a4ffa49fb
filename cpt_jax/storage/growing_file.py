"""Files that a program appends to for hours, and others read meanwhile."""

import time
from pathlib import Path

from cpt_jax.storage.paths import is_on_bucket

# Minimum time between two writes. Buckets allow about one write per second of an object.
SECONDS_BETWEEN_WRITES = 2.0
# An object is written whole, so the time between two writes grows with it: 10 s at 40 MB.
_BYTES_PER_SECOND = 4e6


class GrowingFile:
    """A file that is closed after every write.

    A file that stays open on a mounted bucket is uploaded when it is closed: until then nobody else
    can read it, and it is lost with the machine. An object of a bucket cannot be appended to, so
    all of it is written again.
    """

    def __init__(self, path: Path):
        """Continues the file at `path`, or creates an empty one."""
        self._path = path
        self._pending = b''
        self._next_write = 0.0
        if not path.exists():
            path.write_bytes(b'')
        self._content = path.read_bytes() if is_on_bucket(path) else b''

    def append(self, data: bytes) -> None:
        """Appends data, now or when `write_if_due` is next called."""
        self._pending += data
        self.write_if_due()

    def write_if_due(self) -> None:
        """Writes the data that wait, if the last write was long enough ago."""
        if time.monotonic() >= self._next_write:
            self.write()

    def write(self) -> None:
        """Writes the data that wait."""
        if not self._pending:
            return
        if is_on_bucket(self._path):
            self._content += self._pending
            self._path.write_bytes(self._content)
        else:
            with self._path.open('ab') as file:
                file.write(self._pending)
        self._pending = b''
        seconds = max(SECONDS_BETWEEN_WRITES, len(self._content) / _BYTES_PER_SECOND)
        self._next_write = time.monotonic() + seconds
