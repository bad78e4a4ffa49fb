"""The files that a preparation reads: those of its sources, and what else its result depends on."""

import contextlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cpt_jax.data.files import InputFile, digest_file_states, find_input_files
from cpt_jax.data.pairs import digest_texts
from cpt_jax.prepare.readers.compressed import COMPRESSIONS
from cpt_jax.prepare.registry import READERS
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.paths import is_remote


class SourceFiles(NamedTuple):
    """The files of a source.

    Attributes:
      files: the files whose documents are read.
      companions: files that the reader reads with them; see Reader.
    """

    files: list[InputFile]
    companions: list[InputFile]

    @property
    def digest(self) -> str:
        """Digest of the states of all files."""
        return digest_states([*self.files, *self.companions])

    def measure(self) -> list[int]:
        """Returns the bytes of each file; the first of a folder, or of a folder in it, has those of
        the companions too.
        """
        extra: Counter[Path] = Counter()
        for companion in self.companions:
            extra[companion.path.parent] += companion.path.stat().st_size
        sizes = []
        for file in self.files:
            folder = file.path.parent
            near = extra.pop(folder, 0) + extra.pop(folder.parent, 0)
            sizes.append(file.path.stat().st_size + near)
        return sizes


def digest_states(files: Sequence[InputFile]) -> str:
    """Returns a digest of the states of files, some of which may not be readable: the first stage
    counts those.
    """
    try:
        return digest_file_states(files)
    except OSError:
        return digest_texts(*map(_describe_state, files))


def _describe_state(file: InputFile) -> str:
    try:
        return digest_file_states([file])
    except OSError:
        return f'{file.path.absolute()} unreadable'


def find_source_files(
    name: str, path: str, reader_name: str, arguments: Mapping[str, Any]
) -> SourceFiles:
    """Returns the files of a source.

    Args:
      name: name of the source, for messages.
      path: the path of the config.
      reader_name: name in READERS.
      arguments: arguments of the reader.

    Raises:
      UserError: there is no file that the reader reads.
    """
    reader = READERS[reader_name]
    suffixes = [suffix + compression for suffix in reader.suffixes for compression in COMPRESSIONS]
    try:
        found = find_input_files(
            path, suffixes, hidden=reader.hidden, is_companion=reader.is_companion
        )
    except UserError as error:
        raise UserError(f'sources.{name}.{error}') from None
    if _is_file(path):
        return SourceFiles(found, _find_near_companions(found, reader_name))

    def is_read(file: InputFile) -> bool:
        # In a pattern, any suffix is read, as in training.
        has_suffix = file.name.endswith(tuple(suffixes))
        is_document = has_suffix or not reader.is_companion(file.path.name)
        return is_document and reader.accepts(file.name, **arguments)

    accepted = [file for file in found if is_read(file)]
    if not accepted:
        raise UserError(
            f'sources.{name}.path: {path!r} has {len(found):,} files and none that reader '
            f'{reader_name!r} reads'
        )
    if not is_remote(path) and not Path(path).expanduser().is_dir():
        return SourceFiles(accepted, _find_near_companions(accepted, reader_name))
    names = {file.name for file in accepted}
    others = [file for file in found if file.name not in names]
    return SourceFiles(accepted, [file for file in others if reader.is_companion(file.path.name)])


def _is_file(path: str) -> bool:
    """Returns whether a path names a single local file, which is read whatever its name."""
    return not is_remote(path) and Path(path).expanduser().is_file()


def _find_near_companions(files: list[InputFile], reader_name: str) -> list[InputFile]:
    """Returns the companions in the folders of single local files, and in the folders above."""
    folders = {file.path.absolute().parent for file in files}
    found = []
    for folder in sorted(folders | {folder.parent for folder in folders}):
        with contextlib.suppress(OSError):  # a folder that may not be listed
            paths = [path for path in folder.iterdir() if path.is_file()]
            found += [path for path in paths if READERS[reader_name].is_companion(path.name)]
    read = {file.path.absolute() for file in files}
    return [InputFile(path.name, path) for path in sorted(found) if path not in read]


def list_files(root: Path, folders: set[str]) -> list[InputFile]:
    """Returns the files of some folders of a directory, by name; links are followed."""
    paths = [
        Path(folder, name)
        for first in folders
        for folder, _, names in os.walk(root / first, followlinks=True)
        for name in names
    ]
    return [
        InputFile(path.relative_to(root).as_posix(), path)
        for path in sorted(paths)
        if path.is_file()
    ]


def digest_model(reference: str) -> str:
    """Returns a digest of a model: the states of its files, or the checkpoint of a run.

    Raises:
      UserError: there is no such model.
    """
    # These import JAX, which only this filter needs.
    from cpt_jax.origin.earlier_run import EarlierRun
    from cpt_jax.origin.pretrained import list_model_directories
    from cpt_jax.origin.resolve import resolve_model

    model = resolve_model(reference, 'consistency.model')
    if isinstance(model, EarlierRun):
        return f'{model.directory.absolute()} {model.step} {model.saved}'
    files: list[InputFile] = []
    for path in list_model_directories(reference):
        files += list_files(path, {''}) if path.is_dir() else [InputFile(path.name, path)]
    return digest_file_states(files)
