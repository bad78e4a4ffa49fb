"""Copies of files in buckets (gs:// and what else fsspec opens) in the local cache.

A copy is found by the names, sizes and generations of the remote files, so it is made again when
one of them changes. Programs then read local files.
"""

import base64
import contextlib
import glob
import hashlib
import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tqdm import tqdm

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage import cached_copies
from cpt_jax.storage.atomic_write import open_atomically
from cpt_jax.storage.cache import get_cache_folder
from cpt_jax.storage.file_checksums import (
    Checksum,
    compute_checksum,
    is_undamaged,
    read_checksums,
    write_checksums,
)
from cpt_jax.storage.file_stamp import compute_file_stamp
from cpt_jax.storage.locks import wait_for_lock
from cpt_jax.storage.paths import configure_gcs, is_remote, normalize_url
from cpt_jax.storage.store_errors import explain_errors

# Keys of fsspec's description of a file, one of which changes with the content. Which of them exist
# depends on the store.
_STATE_KEYS = 'generation ETag etag md5Hash updated LastModified created mtime'.split()
_BLOCK_BYTES = 1 << 24
_PARALLEL_READS = 8


def fetch(path: str | Path, name: str) -> Path:
    """Returns the local path of a file or folder, which is copied into the cache if it is remote.

    Args:
      path: a path, in which a leading ~ is the home directory, or a URL.
      name: flag or key that the path comes from, for messages.

    Raises:
      UserError: the remote path does not exist, cannot be read or is larger than the free disk
        space; or the home directory is unknown.
    """
    if is_remote(path):
        return RemoteFiles.find(str(path), name).copy()
    return expand_home(path, name)


def expand_home(path: str | Path, name: str) -> Path:
    """Returns a local path, with a leading ~ replaced by the home directory.

    Args:
      path: the path.
      name: flag or key that the path comes from, for messages.

    Raises:
      UserError: the home directory is unknown.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(
            f'{name} {path}: the home directory is unknown: give a path without ~'
        ) from None


def compute_crc32c(data: bytes) -> str:
    """Returns the CRC-32C of an object of Google Cloud Storage, in base64 as the store gives it."""
    from google_crc32c import Checksum as Crc32c

    return base64.b64encode(Crc32c(data).digest()).decode()


class RemoteFile(NamedTuple):
    """A file in a bucket.

    Attributes:
      path: path for fsspec.
      size: number of bytes.
      state: text that changes with the content.
      hashes: base64 of the digests that the store gives, by name (crc32c, md5Hash).
    """

    path: str
    size: int
    state: str
    hashes: Mapping[str, str]

    def start_hash(self) -> tuple[Any, str]:
        """Returns an object with `update` and `digest`, and the expected digest in base64.

        Without a digest of the store, the object is one of MD5, and the expected digest is ''.
        """
        with contextlib.suppress(ImportError):  # comes with gcsfs
            from google_crc32c import Checksum as Crc32c

            if 'crc32c' in self.hashes:
                return Crc32c(), self.hashes['crc32c']
        return hashlib.md5(usedforsecurity=False), self.hashes.get('md5Hash', '')


class RemoteFiles(NamedTuple):
    """A file in a bucket, the files of a folder, or those that match a pattern.

    Attributes:
      url: the URL that the user gave.
      name: flag or key that the URL comes from, for messages.
      filesystem: fsspec's file system.
      folder: URL of the folder that the files' names are relative to.
      files: the files, by name; empty if there are none.
      kind: what the URL is: 'file', 'folder' or 'pattern'.
    """

    url: str
    name: str
    filesystem: Any
    folder: str
    files: Mapping[str, RemoteFile]
    kind: Literal['file', 'folder', 'pattern']

    @classmethod
    def find(cls, url: str, name: str, must_exist: bool = True) -> 'RemoteFiles':
        """Lists the files of a URL.

        Args:
          url: a file, a folder or a pattern. A name that exists is not taken for a pattern.
          name: flag or key that the URL comes from, for messages.
          must_exist: whether it is an error if there is no file.

        Raises:
          UserError: the store cannot be read, or there is no file.
        """
        with explain_errors(name, url):
            filesystem, root = open_filesystem(url)
            kind, folder, found = _list_files(filesystem, root.rstrip('/'))
        files = {
            path: _describe(info)
            for path, info in sorted(found.items())
            if path and not path.endswith('/')  # an object that marks an empty folder
        }
        unsafe = next((path for path in files if '..' in path.split('/')), None)
        if unsafe:
            raise UserError(f'{name} {url}: the name {unsafe} is not supported: rename the object')
        if not files and must_exist:
            raise UserError(f'{name} {url}: no such file, folder or bucket')
        return cls(url, name, filesystem, f'{url.partition(":")[0]}://{folder}', files, kind)

    def select(self, should_keep: Callable[[str], bool]) -> 'RemoteFiles':
        """Returns the files whose name fulfils a condition."""
        kept = {name: file for name, file in self.files.items() if should_keep(name)}
        return self._replace(files=kept)

    def copy(self, verify: bool = False) -> Path:
        """Copies the files into the cache, unless they are there.

        Args:
          verify: whether to read existing copies in full to find out whether they are undamaged.

        Returns:
          The local path of the URL: a file if it is a file, otherwise the folder that the names of
          the files are relative to.

        Raises:
          UserError: a file cannot be read, or there is not enough disk space.
        """
        entry = get_cache_folder() / cached_copies.FOLDER / self._compute_key()
        # The last part of the URL is kept, because models are named by their directory.
        base = Path(self.folder).name if self.kind == 'folder' else 'files'
        target = entry / base
        try:
            target.mkdir(parents=True, exist_ok=True)
            # Several processes of a host may ask for the same files.
            with wait_for_lock(entry / cached_copies.LOCK):
                cached_copies.mark_as_used(entry)
                self._fill(entry, base, verify)
        except OSError as error:
            raise UserError(
                f'{self.name} {self.url}: cannot be copied to {entry} ({error}): free space there, '
                f'or set CPT_JAX_CACHE to another folder'
            ) from None
        return target / next(iter(self.files)) if self.kind == 'file' else target

    def _compute_key(self) -> str:
        states = [(name, file.size, file.state) for name, file in self.files.items()]
        return hashlib.blake2b(repr((self.folder, states)).encode(), digest_size=16).hexdigest()

    def _fill(self, entry: Path, base: str, verify: bool) -> None:
        """Copies the files that are missing or damaged to `entry`/`base`."""
        expected = read_checksums(entry)
        checksums: dict[str, Checksum] = {}
        missing: dict[str, RemoteFile] = {}
        for name, file in self.files.items():
            path = entry / base / name
            checksum = _check_copy(path, expected.get(f'{base}/{name}'), file, verify)
            if checksum:
                checksums[f'{base}/{name}'] = checksum
            else:
                missing[name] = file
        if missing:
            size = sum(file.size for file in missing.values())
            cached_copies.make_room(size, f'{self.name} {self.url}')
            for name, checksum in self._download(missing, entry / base):
                checksums[f'{base}/{name}'] = checksum
        if checksums != expected:
            write_checksums(entry, checksums)

    def _download(
        self, missing: Mapping[str, RemoteFile], target: Path
    ) -> Iterator[tuple[str, Checksum]]:
        """Copies files, and yields the name and checksum of each."""
        total = sum(file.size for file in missing.values())
        with (
            tqdm(
                total=total, desc=f'copying {self.url}', unit='B', unit_scale=True, disable=None
            ) as bar,
            contextlib.closing(self._read_ahead(missing)) as blocks,
        ):
            for name, file in missing.items():
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                checksum = Checksum(0, 0)
                digest, expected = file.start_hash()
                with open_atomically(path) as output:
                    for _ in range(0, file.size, _BLOCK_BYTES):
                        block = next(blocks)
                        output.write(block)
                        checksum = checksum.add(block)
                        digest.update(block)
                        bar.update(len(block))
                    found = base64.b64encode(digest.digest()).decode()
                    if checksum.size != file.size or (expected and found != expected):
                        raise UserError(
                            f'{self.name} {self.url}: {name} changed while it was copied: start '
                            f'again'
                        )
                yield name, checksum._replace(stamp=compute_file_stamp(path))

    def _read_ahead(self, files: Mapping[str, RemoteFile]) -> Generator[bytes, None, None]:
        """Yields the blocks of all files in order; a few are read at the same time."""

        def read(file: RemoteFile, start: int) -> bytes:
            with explain_errors(self.name, self.url):
                end = min(start + _BLOCK_BYTES, file.size)
                return self.filesystem.cat_file(file.path, start, end)

        waiting: deque[Future[bytes]] = deque()
        with ThreadPoolExecutor(_PARALLEL_READS) as threads:
            for file in files.values():
                for start in range(0, file.size, _BLOCK_BYTES):
                    waiting.append(threads.submit(read, file, start))
                    if len(waiting) == _PARALLEL_READS:
                        yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


def _check_copy(
    path: Path, expected: Checksum | None, file: RemoteFile, verify: bool
) -> Checksum | None:
    """Returns the checksum of a copy, with its stamp; None if it is missing or damaged."""
    if not path.is_file() or path.stat().st_size != file.size:
        if expected:
            logging.warning('%s: the copy of %s is damaged: making it again', path, file.path)
        return None
    stamp = compute_file_stamp(path)
    if expected is None:  # the program that copied the file was killed before the last one
        return compute_checksum(path)._replace(stamp=stamp)
    if (verify or stamp != expected.stamp) and not is_undamaged(path, expected):
        logging.warning('%s: the copy of %s is damaged: making it again', path, file.path)
        return None
    return expected._replace(stamp=stamp)


def open_filesystem(url: str) -> tuple[Any, str]:
    """Returns fsspec's file system of a URL, without a stale listing, and the path in it."""
    import fsspec.core

    configure_gcs()
    filesystem, root = fsspec.core.url_to_fs(normalize_url(url))
    filesystem.invalidate_cache()
    return filesystem, root


def _list_files(
    filesystem: Any, root: str
) -> tuple[Literal['file', 'folder', 'pattern'], str, dict[str, dict]]:
    """Returns what a path is, a folder, and fsspec's description of each file by its path relative
    to that folder.

    The folder of a pattern is its longest parent that has no wildcard or exists.
    """
    parent, _, rest = root.rpartition('/')
    if rest and filesystem.isfile(root):
        return 'file', parent, {rest: filesystem.info(root)}
    found = filesystem.find(root, detail=True)
    if found or not glob.has_magic(root):
        return 'folder', root, _shorten_paths(found, root)
    while glob.has_magic(parent) and not filesystem.isdir(parent):
        parent, _, last = parent.rpartition('/')
        rest = f'{last}/{rest}'
    matches = filesystem.glob(f'{glob.escape(parent)}/{rest}', detail=True)
    found = {path: info for path, info in matches.items() if info['type'] == 'file'}
    return 'pattern', parent, _shorten_paths(found, parent)


def _shorten_paths(found: Mapping[str, dict], folder: str) -> dict[str, dict]:
    return {path.removeprefix(folder).lstrip('/'): info for path, info in found.items()}


def _describe(info: Mapping[str, Any]) -> RemoteFile:
    state = [str(info[key]) for key in _STATE_KEYS if key in info]
    hashes = {key: info[key] for key in ('crc32c', 'md5Hash') if info.get(key)}
    return RemoteFile(info['name'], info['size'], ' '.join(state), hashes)
