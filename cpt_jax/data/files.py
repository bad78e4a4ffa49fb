"""Finds the input files of a `path` in a config."""

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cpt_jax.data.pairs import digest_texts
from cpt_jax.runtime.errors import UserError


class InputFile(NamedTuple):
    """An input file.

    Attributes:
      name: path relative to the folder of the config's path, the same on every machine.
      path: path to read.
      compressed: path of the original file if `path` is its decompressed copy.
    """

    name: str
    path: Path
    compressed: Path | None = None

    @property
    def original_path(self) -> Path:
        """Path of the user's own file, for messages."""
        return self.compressed or self.path


def find_input_files(path: str, suffixes: Sequence[str]) -> list[InputFile]:
    """Returns the files of a path, sorted by name.

    Args:
      path: a file with any suffix, a folder, which is searched recursively, or a glob pattern
        ('data/*.jsonl', 'data/**/*.md'). In folders and patterns, files and folders whose names
        begin with '_' or '.' are skipped, as in other tools: notes such as `_SOURCE.txt` are not
        data.
      suffixes: suffixes of the files to find in a folder.

    Raises:
      UserError: no file is found.
    """
    expanded = Path(path).expanduser()
    if expanded.is_file():
        return [InputFile(expanded.name, expanded)]
    if expanded.is_dir():
        root = expanded
        paths = [found for found in expanded.rglob('*') if found.name.endswith(tuple(suffixes))]
    else:
        root = _find_fixed_folder(expanded)
        paths = [Path(found) for found in glob.glob(str(expanded), recursive=True)]
    named = [
        InputFile(found.relative_to(root).as_posix(), found) for found in paths if found.is_file()
    ]
    files = sorted(
        file for file in named if not any(part[0] in '_.' for part in Path(file.name).parts)
    )
    if not files:
        kinds = ' or '.join(f'*{suffix}' for suffix in suffixes)
        raise UserError(
            f'path: {path!r} is not a file, not a folder with {kinds} files and not a pattern that '
            f'matches a file'
        )
    return files


def _find_fixed_folder(pattern: Path) -> Path:
    """Returns the longest parent folder of a pattern that has no wildcard."""
    return next(parent for parent in pattern.parents if not glob.has_magic(str(parent)))


def digest_file_stats(files: Sequence[InputFile]) -> str:
    """Returns a digest of the files' paths, sizes and modification times, for use as a cache key.

    The files are not read.
    """
    stats = ((file, file.path.stat()) for file in files)
    return digest_texts(
        *(f'{file.path.absolute()} {stat.st_size} {stat.st_mtime_ns}' for file, stat in stats)
    )
