"""Files that a program appends to for hours, and others read meanwhile."""

import contextlib
import threading
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

    Data wait only for the next write that is allowed, whatever the program does meanwhile: a thread
    writes them while it compiles a step or waits for data.
    """

    def __init__(self, path: Path):
        """Continues the file at `path`, or creates an empty one."""
        self._path = path
        self._pending = b''
        self._next_write = 0.0
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()
        if not path.exists():
            path.write_bytes(b'')
        self._content = path.read_bytes() if is_on_bucket(path) else b''

    def append(self, data: bytes) -> None:
        """Appends data, now or, if the last write was too recent, as soon as is allowed."""
        with self._lock:
            self._pending += data
            seconds = self._next_write - time.monotonic()
            if seconds <= 0:
                self._write()
            elif self._timer is None:
                self._timer = threading.Timer(seconds, self._write_later)
                self._timer.daemon = True
                self._timer.start()

    def write(self) -> None:
        """Writes the data that wait."""
        with self._lock:
            self._write()

    def _write_later(self) -> None:
        with self._lock:
            self._timer = None
            # The data still wait, so the next call raises the error where it ends the program.
            with contextlib.suppress(Exception):
                self._write()

    def _write(self) -> None:
        if not self._pending:
            return
        if is_on_bucket(self._path):
            content = self._content + self._pending
            self._path.write_bytes(content)
            self._content = content
        else:
            with self._path.open('ab') as file:
                file.write(self._pending)
        self._pending = b''
        seconds = max(SECONDS_BETWEEN_WRITES, len(self._content) / _BYTES_PER_SECOND)
        self._next_write = time.monotonic() + seconds
