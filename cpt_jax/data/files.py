"""The input files that a `path` in a config stands for."""

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cpt_jax.data.pairs import text_digest
from cpt_jax.runtime.errors import UserError


class InputFile(NamedTuple):
    """A file and its name below the folder of the config's path: the same name on every machine.

    Attributes:
      packed: where it was found, if `path` is an unpacked copy of that.
    """

    name: str
    path: Path
    packed: Path | None = None

    @property
    def found(self) -> Path:
        """The file that a user knows."""
        return self.packed or self.path


def input_files(path: str, suffixes: Sequence[str]) -> list[InputFile]:
    """The files of a path, sorted by name.

    A file stands for itself, whatever its suffix; a folder for all files with one of the suffixes
    in it and below it; anything else is a pattern ('data/*.jsonl', 'data/**/*.md'). In folders and
    patterns, names that begin with '_' or '.' are left out, as in other tools: notes such as
    `_SOURCE.txt` are no data. Raises UserError when nothing is found.
    """
    expanded = Path(path).expanduser()
    if expanded.is_file():
        return [InputFile(expanded.name, expanded)]
    root = expanded if expanded.is_dir() else _fixed_part(expanded)
    if expanded.is_dir():
        paths = [found for found in expanded.rglob('*') if found.name.endswith(tuple(suffixes))]
    else:
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
            f'path: {path!r} is no file, no folder with {kinds} files and no pattern that matches '
            f'one'
        )
    return files


def _fixed_part(pattern: Path) -> Path:
    """The longest folder above a pattern that has no wildcard."""
    return next(parent for parent in pattern.parents if not glob.has_magic(str(parent)))


def files_state(files: Sequence[InputFile]) -> str:
    """A digest that changes when a file does, without reading it: names, sizes and times of change.
    Good for a cache only.
    """
    stats = ((file, file.path.stat()) for file in files)
    return text_digest(
        *(f'{file.path.absolute()} {stat.st_size} {stat.st_mtime_ns}' for file, stat in stats)
    )
