"""Leases on objects of a bucket, which has no locks.

The holder renews its lease while it runs. A holder that was killed cannot give it back, so a lease
that has not been renewed for a minute is taken over. The clocks of the programs are not compared:
a program measures how long it sees the same generation of the object.
"""

import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cpt_jax.runtime.errors import EXIT_MISTAKE
from cpt_jax.storage.bucket import find_blob, get_generation
from cpt_jax.storage.store_errors import explain_errors

RENEW_SECONDS = 20.0
STALE_SECONDS = 60.0
# Time after which a program that wrote a lease reads it again. Buckets check generations; this is
# for those that do not, such as emulators.
_SETTLE_SECONDS = 1.0

# Path -> the generation of another program's lease, and when this program first saw it.
_seen: dict[str, tuple[int, float]] = {}


@contextmanager
def try_lease(path: Path, note: str = '') -> Iterator[bool]:
    """Tries to take a lease without waiting, and gives it back at the end of the block.

    If the lease is lost, because this program could not renew it and another one took it over, this
    process exits: it must not write any more.

    Args:
      path: the object of the lease.
      note: description of this program, for the messages of others.

    Yields:
      True if this program has the lease, False if another one has it.

    Raises:
      UserError: the bucket cannot be written.
    """
    lease = _Lease(path, note)
    with explain_errors('', str(path), 'written'):
        mine = lease.take()
    if not mine:
        yield False
        return
    done = threading.Event()
    renewer = threading.Thread(target=lease.renew_until, args=(done,), daemon=True)
    renewer.start()
    try:
        yield True
    finally:
        done.set()
        renewer.join()
        lease.give_back()


@contextmanager
def wait_for_lease(path: Path) -> Iterator[None]:
    """Waits for a lease, and gives it back at the end of the block."""
    while True:
        with try_lease(path) as mine:
            if mine:
                yield
                return
        time.sleep(1)


def wait_until_renewed_or_stale(path: Path) -> None:
    """Waits until the holder of a lease shows that it runs, or the lease may be taken over."""
    first = get_generation(path)
    deadline = time.monotonic() + STALE_SECONDS
    while first and get_generation(path) == first and time.monotonic() < deadline:
        time.sleep(1)


def read_note(path: Path) -> str:
    """Returns the note of the holder of a lease; '' if there is none."""
    return _read(path)[0]


class _Lease:
    """A lease of this program."""

    def __init__(self, path: Path, note: str):
        self._path = path
        self._note = note
        self._token = uuid.uuid4().hex
        self._generation = 0  # of the object as this program wrote it last

    def take(self) -> bool:
        """Takes the lease if nobody holds it; returns whether it did."""
        from google.api_core.exceptions import NotFound, PreconditionFailed

        self._generation = get_generation(self._path)
        if self._generation and not _is_stale(self._path, self._generation):
            return False
        try:
            self._write()
        except (PreconditionFailed, NotFound):
            return False
        time.sleep(_SETTLE_SECONDS)
        return _read(self._path)[1] == self._token

    def renew_until(self, done: threading.Event) -> None:
        """Renews the lease until `done` is set; exits the process if the lease is lost."""
        from google.api_core.exceptions import NotFound, PreconditionFailed

        while not done.wait(RENEW_SECONDS):
            try:
                self._write()
            except (PreconditionFailed, NotFound):
                line = f'{self._path}: another program has taken over the lease'
                print(f'error: {line}', file=sys.stderr, flush=True)
                os._exit(EXIT_MISTAKE)
            except Exception as error:  # the network; the next renewal may succeed
                print(f'{self._path}: not renewed ({error})', file=sys.stderr, flush=True)

    def give_back(self) -> None:
        """Deletes the object, unless another program has taken it over."""
        try:
            find_blob(self._path).delete(if_generation_match=self._generation)
        except Exception as error:  # the lease ends by itself
            print(f'{self._path}: not deleted ({error})', file=sys.stderr, flush=True)

    def _read_token(self) -> str:
        """Returns the token of the object. Raises NotFound if it was deleted."""
        return json.loads(find_blob(self._path).download_as_bytes())['token']

    def _write(self) -> None:
        """Writes the object.

        Raises:
          PreconditionFailed: another program has written or deleted it.
        """
        from google.api_core.exceptions import PreconditionFailed

        blob = find_blob(self._path)
        content = json.dumps({'note': self._note, 'token': self._token})
        try:
            blob.upload_from_string(content, if_generation_match=self._generation)
            self._generation = blob.generation
        except PreconditionFailed:
            # The bucket may have taken an earlier attempt of this program, whose answer was lost.
            generation = get_generation(self._path)
            if not generation or self._read_token() != self._token:
                raise
            self._generation = generation


def _is_stale(path: Path, generation: int) -> bool:
    """Returns whether this program has seen the same generation for STALE_SECONDS."""
    now = time.monotonic()
    seen, since = _seen.get(str(path), (0, now))
    if seen != generation:
        since = now
    _seen[str(path)] = generation, since
    return now - since >= STALE_SECONDS


def _read(path: Path) -> tuple[str, str]:
    """Returns note and token of a lease, '' if it was deleted or is being replaced."""
    try:
        content = json.loads(find_blob(path).download_as_bytes())
        return content['note'], content['token']
    except Exception:
        return '', ''
