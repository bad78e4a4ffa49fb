"""A folder of the cache that one program fills while the others wait for it."""

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from cpt_jax.storage.cache import get_cache_folder
from cpt_jax.storage.locks import LocksNotSupported, wait_for_lock


class CacheEntry:
    """A folder `<cache folder>/<name>`; a temporary folder if the cache cannot be written.

    Args:
      name: name of the folder. It must contain a digest of everything that its files depend on.

    Attributes:
      folder: the folder. A temporary one lives as long as this object.
    """

    def __init__(self, name: str):
        self.folder = get_cache_folder() / name
        self._temporary: tempfile.TemporaryDirectory | None = None

    @contextlib.contextmanager
    def lock(self, is_whole: Callable[[Path], bool], message: str) -> Iterator[None]:
        """Holds the folder's lock for the block.

        On a file system without locks, several programs may fill the folder at the same time. They
        write the same files, each of them atomically.

        Args:
          is_whole: function that returns whether a folder has all its files, so that it is of use
            in a cache that cannot be written.
          message: warning to print if another program has the lock.
        """
        with contextlib.ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(wait_for_lock(self.folder / 'lock', message))
                for part in self.folder.glob('*.part'):  # left by a program that was killed
                    part.unlink()
            except LocksNotSupported:
                pass
            except OSError as error:
                if not is_whole(self.folder):
                    logging.warning(
                        '%s cannot be written (%s): the next program has to build it again',
                        self.folder,
                        error.strerror,
                    )
                    self._temporary = tempfile.TemporaryDirectory(prefix='cpt_jax')
                    self.folder = Path(self._temporary.name)
            yield
