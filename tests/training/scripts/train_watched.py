"""Runs launch/train.py so slowly that tests can watch it.

A step takes a quarter of a second, and waits while a file `hold` is in the working directory. Its
leases are renewed often. Its folder behaves like a mounted bucket: what is written to a record is
on the disk only when its file is closed, and is lost if it never is.
"""

import io
import os
import runpy
import shutil
import tempfile
import time
from pathlib import Path

from cpt_jax.storage import lease
from cpt_jax.training import loop

ROOT = Path(__file__).parents[3]
RECORDS = 'metrics.jsonl', 'train.log', 'tfevents'
SECONDS_PER_STEP = 0.25

open_on_disk = io.open
place_batch = loop.place_batch


class UploadedAtClose(io.FileIO):
    """A file whose content is elsewhere until it is closed."""

    def __init__(self, path: str):
        self._target = path
        self._copy = tempfile.mktemp(dir=os.getcwd())
        if os.path.exists(path):
            shutil.copyfile(path, self._copy)
        super().__init__(self._copy, 'a')

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.replace(self._copy, self._target)  # a bucket replaces objects as a whole


def open_on_mount(file, mode: str = 'r', *arguments, **options):
    if 'a' in mode and any(name in str(file) for name in RECORDS):
        return UploadedAtClose(str(file))
    return open_on_disk(file, mode, *arguments, **options)


def place_batch_slowly(*arguments):
    time.sleep(SECONDS_PER_STEP)
    while os.path.exists('hold'):
        time.sleep(0.05)
    return place_batch(*arguments)


io.open = open_on_mount  # pathlib.Path.open calls it
loop.place_batch = place_batch_slowly
lease.RENEW_SECONDS = 0.5
runpy.run_path(str(ROOT / 'launch' / 'train.py'), run_name='__main__')
