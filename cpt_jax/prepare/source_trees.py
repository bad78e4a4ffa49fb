"""Reader of source trees: the source files of folders, and of .zip and .tar archives in them.

A document is a source file, with the fields `path`, `language`, `license` and `package`; its
`group` is the package too, so that packages are held out as a whole.
"""

import functools
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from cpt_jax.prepare.document import Document, Dropped, Unreadable
from cpt_jax.prepare.licenses import (
    MAX_BYTES,
    identify_license,
    is_license_file,
    rank_license_file,
)
from cpt_jax.prepare.parsers.languages import LANGUAGES, find_language
from cpt_jax.runtime.errors import UserError

_ARCHIVES = ('.zip', '.jar', '.whl', '.tar', '.tar.gz', '.tgz', '.tar.xz', '.tar.bz2')
_SUFFIXES_OF_SOURCES = tuple(
    suffix for language in LANGUAGES.values() for suffix in language.suffixes
)
SUFFIXES = (*_SUFFIXES_OF_SOURCES, *_ARCHIVES)
HIDDEN = '.'  # names of Python files begin with '_' too
_ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,  # a compression that zipfile does not know
    RuntimeError,  # an encrypted file
)


class Member(NamedTuple):
    """A file of an archive.

    Attributes:
      name: its path in the archive.
      content: its bytes.
    """

    name: str
    content: bytes


def read_sources(
    path: Path,
    name: str,
    languages: Sequence[str] = (),
    package_folders: int = 1,
    max_file_mb: float = 1.0,
) -> Iterator[Document | Unreadable | Dropped]:
    """Yields the document of a source file, or those of an archive.

    Larger files are left out: they are generated. The license is that of the nearest folder with a
    license file, up to the root of the tree.

    Args:
      path: the file.
      name: its path relative to the root of the source tree.
      languages: languages to read, as in LANGUAGES; (): all.
      package_folders: number of leading folders of a path that are the name of the package. In an
        archive, its path is the first part of the name, and folders are counted inside of it. With
        0, a tree is one package and so is an archive.
      max_file_mb: maximum megabytes of a source file.
    """
    limit = int(max_file_mb * 1e6)
    if name.lower().endswith(_ARCHIVES):
        try:
            yield from _read_archive(path, name, languages, package_folders, limit)
        except _ARCHIVE_ERRORS as error:
            yield Unreadable(name, 'broken archive', f'{error}', ends_file=True)
        return
    root = path.parents[len(PurePosixPath(name).parts) - 1]
    try:
        size = path.stat().st_size
        if not _is_wanted(name, size, languages, limit):
            if size > limit:
                yield Dropped('source file above max_file_mb')
            return
        content = path.read_bytes()
        license_id = _find_license(path.parent, root)
    except OSError as error:
        yield Unreadable(name, 'unreadable file', error.strerror or str(error))
        return
    package = _name_package(root.name, name, package_folders)
    yield _make_document(name, content, package, license_id)


def check_source_reader(
    languages: Sequence[str] = (), package_folders: int = 1, max_file_mb: float = 1.0
) -> None:
    """Raises UserError if the arguments of `read_sources` are invalid."""
    unknown = [name for name in languages if name not in LANGUAGES]
    if unknown:
        raise UserError(f'languages: {unknown[0]!r} is unknown: choose from {", ".join(LANGUAGES)}')
    if package_folders < 0:
        raise UserError(f'package_folders={package_folders}: must be 0 or more')
    if max_file_mb <= 0:
        raise UserError(f'max_file_mb={max_file_mb:g}: must be above 0')


def is_source(
    name: str,
    languages: Sequence[str] = (),
    package_folders: int = 1,
    max_file_mb: float = 1.0,
) -> bool:
    """Returns whether `read_sources` with these arguments reads a file of this name."""
    del package_folders, max_file_mb
    language = find_language(name)
    is_archive = name.lower().endswith(_ARCHIVES)
    return is_archive or bool(language) and (not languages or language in languages)


def _is_wanted(name: str, size: int, languages: Sequence[str], limit: int) -> bool:
    return size <= limit and bool(find_language(name)) and is_source(name, languages)


def _name_package(first: str, name: str, folders: int) -> str:
    """Returns the name of a file's package.

    Args:
      first: name of the tree or archive, which is the package if the file is in no folder.
      name: path of the file in the tree or archive.
      folders: number of folders that name a package.
    """
    parts = PurePosixPath(name).parts[:-1][:folders]
    return '/'.join(parts) or first


def _make_document(
    name: str, content: bytes, package: str, license_id: str
) -> Document | Unreadable:
    try:
        text = content.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        return Unreadable(name, 'not UTF-8', str(error))
    fields = {
        'path': name,
        'language': find_language(name),
        'license': license_id,
        'package': package,
        'group': package,
    }
    return Document(text, name, fields)


@functools.lru_cache(100_000)
def _find_license(folder: Path, root: Path) -> str:
    """Returns the license of a folder: its own, or that of the nearest folder up to the root."""
    files = [path for path in folder.iterdir() if is_license_file(path.name)]
    files.sort(key=lambda path: (rank_license_file(path.name), path.name))
    files += folder.glob('usr/share/doc/*/copyright')  # an unpacked package of Debian
    if folder.parent == root:  # a package of Python, whose metadata are in a folder beside it
        files += root.glob(f'{folder.name}-*.dist-info/METADATA')
    for path in files:
        license_id = _read_license(path)
        if license_id:
            return license_id
    return _find_license(folder.parent, root) if folder != root else ''


def _read_license(path: Path) -> str:
    if not path.is_file():
        return ''
    with path.open('rb') as file:
        return identify_license(path.name, file.read(MAX_BYTES).decode('utf-8', 'replace'))


def _read_archive(
    path: Path, name: str, languages: Sequence[str], package_folders: int, limit: int
) -> Iterator[Document | Unreadable]:
    licenses = _read_licenses(path)
    root = path.parents[len(PurePosixPath(name).parts) - 1]
    licenses.setdefault('.', _find_license(path.parent, root))

    def is_wanted(member: str, size: int) -> bool:
        return _is_wanted(member, size, languages, limit)

    for member in _iterate_members(path, is_wanted):
        inside = _name_package('', member.name, package_folders)
        package = f'{name}/{inside}' if inside else name
        license_id = _get_nearest_license(licenses, member.name)
        yield _make_document(f'{name}/{member.name}', member.content, package, license_id)


def _read_licenses(path: Path) -> dict[str, str]:
    """Returns the license of each folder of an archive that has a license file."""

    def is_wanted(member: str, size: int) -> bool:
        return is_license_file(PurePosixPath(member).name) and size <= MAX_BYTES

    found = sorted(
        _iterate_members(path, is_wanted),
        key=lambda member: rank_license_file(PurePosixPath(member.name).name),
    )
    licenses: dict[str, str] = {}
    for member in found:
        file = PurePosixPath(member.name)
        license_id = identify_license(file.name, member.content.decode('utf-8', 'replace'))
        if license_id:
            licenses.setdefault(str(file.parent), license_id)
    return licenses


def _get_nearest_license(licenses: Mapping[str, str], name: str) -> str:
    folders = map(str, PurePosixPath(name).parents)
    return next((licenses[folder] for folder in folders if folder in licenses), '')


def _iterate_members(path: Path, is_wanted: Callable[[str, int], bool]) -> Iterator[Member]:
    """Yields the files of an archive whose name and size fulfil a condition."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.is_dir() and is_wanted(info.filename, info.file_size):
                    yield Member(info.filename, archive.read(info))
        return
    with tarfile.open(path, 'r|*') as stream:
        for entry in stream:
            if entry.isfile() and is_wanted(entry.name, entry.size):
                file = stream.extractfile(entry)
                assert file is not None  # it is a file
                yield Member(entry.name.removeprefix('./'), file.read())
