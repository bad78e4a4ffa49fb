"""Finds the input files of a `path` in a config."""

import glob
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from cpt_jax.data.pairs import digest_texts
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.file_stamp import compute_file_stamp
from cpt_jax.storage.paths import is_remote
from cpt_jax.storage.remote import RemoteFiles, expand_home

_PARALLEL_READS = 16


class InputFile(NamedTuple):
    """An input file.

    Attributes:
      name: path relative to the folder of the config's path, the same on every machine.
      path: path to read.
      original: path of the user's own file if `path` is a copy of it in the cache.
      checksum: size and CRC-32 of such a copy.
      url: URL of a file that was copied from a bucket.
    """

    name: str
    path: Path
    original: Path | None = None
    checksum: tuple[int, int] | None = None
    url: str = ''

    @property
    def original_path(self) -> Path | str:
        """Path or URL of the user's own file, for messages."""
        return self.url or self.original or self.path


def _is_never(name: str) -> bool:
    del name
    return False


def find_input_files(
    path: str,
    suffixes: Sequence[str],
    verify: bool = False,
    hidden: str = '_.',
    is_companion: Callable[[str], bool] = _is_never,
) -> list[InputFile]:
    """Returns the files of a path, sorted by name.

    Args:
      path: a file with any suffix, a folder, which is searched recursively, or a glob pattern
        ('data/*.jsonl', 'data/**/*.md'). In folders and patterns, files and folders whose names
        begin with '_' or '.' are skipped, as in other tools: notes such as `_SOURCE.txt` are not
        data; see `hidden`. A name that exists is not taken for a pattern. All three may be URLs (gs://...),
        whose files are copied into the cache.
      suffixes: suffixes of the files to find in a folder.
      verify: whether to read the copies of remote files in full to find out whether they changed.
      hidden: characters with which the names of files and folders begin that are skipped in folders
        and patterns.
      is_companion: function from the name of a file, without its folder, to whether it is found in
        a folder although its suffix is another one.

    Raises:
      UserError: no file is found, or a file or folder cannot be read.
    """

    def is_wanted(name: str) -> bool:
        return name.endswith(tuple(suffixes)) or is_companion(Path(name).name)

    try:
        find = _find_remote_files if is_remote(path) else _find_local_files
        files = find(path, is_wanted, verify, hidden)
    except OSError as error:
        raise UserError(f'path: {path!r} cannot be read: {error.strerror}') from None
    if not files:
        kinds = ' or '.join(f'*{suffix}' for suffix in suffixes)
        raise UserError(
            f'path: {path!r} is not a file, not a folder with {kinds} files and not a pattern that '
            f'matches a file'
        )
    return files


def _find_local_files(
    path: str, is_wanted: Callable[[str], bool], verify: bool, hidden: str
) -> list[InputFile]:
    del verify  # the files are not copied
    expanded = expand_home(path, 'path')
    if expanded.is_file():
        return [InputFile(expanded.name, expanded)]
    if expanded.is_dir():
        root = expanded
        paths = [found for found in expanded.rglob('*') if is_wanted(found.name)]
    else:
        root = _find_fixed_folder(expanded)
        pattern = str(expanded.relative_to(root))
        paths = [root / found for found in glob.glob(pattern, root_dir=root, recursive=True)]
    named = [
        InputFile(found.relative_to(root).as_posix(), found) for found in paths if found.is_file()
    ]
    return sorted(file for file in named if not _is_hidden(file.name, hidden))


def _find_remote_files(
    url: str, is_wanted: Callable[[str], bool], verify: bool, hidden: str
) -> list[InputFile]:
    found = RemoteFiles.find(url, 'path', must_exist=False)
    if found.kind == 'folder':
        found = found.select(is_wanted)
    if found.kind != 'file':
        found = found.select(lambda name: not _is_hidden(name, hidden))
    if not found.files:
        return []
    folder = found.copy(verify)
    if found.kind == 'file':
        folder = folder.parent
    return [
        InputFile(name, folder / name, url=f'{found.folder}/{name}') for name in sorted(found.files)
    ]


def _is_hidden(name: str, hidden: str) -> bool:
    return any(part[0] in hidden for part in Path(name).parts)


def _find_fixed_folder(pattern: Path) -> Path:
    """Returns the longest parent folder of a pattern that exists or has no wildcard.

    A folder may be named as a pattern is written, such as `runs[1]`.
    """
    return next(
        parent for parent in pattern.parents if parent.is_dir() or not glob.has_magic(str(parent))
    )


def digest_file_states(files: Sequence[InputFile], verify: bool = False) -> str:
    """Returns a digest of the paths and the states of the user's files, for use as a cache key.

    Args:
      files: the files.
      verify: whether to read all their bytes; otherwise 16 blocks of each are read.
    """
    return digest_texts(*describe_file_states(files, verify))


def describe_file_states(files: Sequence[InputFile], verify: bool = False) -> list[str]:
    """Returns a text for each file that changes when the user's file or its copy changes."""
    paths = [file.original or file.path for file in files]
    # Threads, because on a network each read waits for a round trip.
    with ThreadPoolExecutor(_PARALLEL_READS) as threads:
        stamps = list(threads.map(lambda path: compute_file_stamp(path, verify), paths))
    return [
        f'{file.url or path.absolute()} {stamp} {file.checksum}'
        for file, path, stamp in zip(files, paths, stamps, strict=True)
    ]
