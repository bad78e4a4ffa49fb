"""Copies of input files in the cache, for fast random access.

Gzipped files are decompressed into it. Files on a network or FUSE file system, where each read may
wait for another machine, are copied.
"""

import contextlib
import gzip
import logging
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from cpt_jax.data.files import InputFile, describe_file_states
from cpt_jax.data.pairs import digest_texts
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.atomic_write import open_atomically
from cpt_jax.storage.cache import fits_into_cache, get_cache_folder, is_slower_than_cache
from cpt_jax.storage.file_checksums import (
    Checksum,
    is_undamaged,
    read_checksums,
    write_checksums,
)
from cpt_jax.storage.file_stamp import compute_file_stamp

GZIP_SUFFIX = '.gz'
_BLOCK_BYTES = 1 << 22
_PARALLEL_COPIES = 8


def make_local_copies(files: Sequence[InputFile], verify: bool = False) -> list[InputFile]:
    """Returns the files, with gzipped ones and those on a slow mount replaced by copies in the
    cache.

    The copy of a gzipped file has the name without .gz. An existing copy is used if it is as it was
    written. Files on a slow mount that are larger than the free disk space are read where they are.

    Args:
      files: the files.
      verify: whether to compare all bytes of an existing copy with those of its file.

    Raises:
      UserError: a file exists with and without .gz, a file is damaged, or it cannot be written.
    """
    found = [file._replace(name=file.name.removesuffix(GZIP_SUFFIX)) for file in files]
    repeated = [name for name, count in Counter(file.name for file in found).items() if count > 1]
    if repeated:
        raise UserError(
            f'path: {repeated[0]} exists with and without {GZIP_SUFFIX}, so its rows would count '
            f'twice: remove one of the two files'
        )
    copies = _find_copy_paths([file for file in found if _needs_copy(file)])
    missing = [file for file, copy in copies.items() if not _is_copy_whole(file, copy, verify)]
    slow = {file for file in missing if not _is_gzipped(file)}
    size = sum(file.path.stat().st_size for file in slow)
    if slow and not fits_into_cache(size, f'{len(slow):,} files of the path'):
        missing = [file for file in missing if file not in slow]
        copies = {file: copy for file, copy in copies.items() if file not in slow}
    total = sum(file.path.stat().st_size for file in missing)
    disable = None if missing else True
    with (
        tqdm(total=total, desc='copying', unit='B', unit_scale=True, disable=disable) as bar,
        ThreadPoolExecutor(_PARALLEL_COPIES) as threads,
    ):
        list(threads.map(lambda file: _write_copy(file, copies[file], bar), missing))
    return [_use_copy(file, copies[file]) if file in copies else file for file in found]


def _use_copy(file: InputFile, copy: Path) -> InputFile:
    checksum = read_checksums(copy.parent)[copy.name]
    return file._replace(path=copy, original=file.path, checksum=checksum[:2])


def _needs_copy(file: InputFile) -> bool:
    return _is_gzipped(file) or is_slower_than_cache(file.path)


def _is_gzipped(file: InputFile) -> bool:
    return file.path.name.endswith(GZIP_SUFFIX)


def _find_copy_paths(files: Sequence[InputFile]) -> dict[InputFile, Path]:
    """Returns the path of each file's copy, which may not exist yet."""
    folder = get_cache_folder() / 'unpacked'
    states = describe_file_states(files)
    return {
        file: folder / digest_texts(state) / Path(file.name).name
        for file, state in zip(files, states, strict=True)
    }


def _is_copy_whole(file: InputFile, copy: Path, verify: bool) -> bool:
    """Returns whether a copy exists and is as it was written; warns about a damaged one."""
    expected = read_checksums(copy.parent).get(copy.name)
    if expected is None or not copy.is_file():
        return False
    if not verify and compute_file_stamp(copy) == expected.stamp:
        return True
    # Another stamp does not mean another content: somebody may have copied the cache.
    is_good = is_undamaged(copy, expected)
    if is_good and verify:
        is_good = _read_checksum(file) == (expected.size, expected.crc32, '')
    if not is_good:
        logging.warning('%s: the copy of %s is damaged: making it again', copy, file.original_path)
        return False
    with contextlib.suppress(OSError):  # in a cache that cannot be written
        _store_checksum(copy, expected)
    return True


def _write_copy(file: InputFile, copy: Path, bar: tqdm) -> None:
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with open_atomically(copy) as output:
            checksum = Checksum(0, 0)
            for block in _read_blocks(file, bar):
                output.write(block)
                checksum = checksum.add(block)
        _store_checksum(copy, checksum)
    except OSError as error:
        done = 'decompressed' if _is_gzipped(file) else 'copied'
        raise UserError(
            f'{file.original_path}: cannot be {done} into {copy.parent} ({error}): free space '
            f'there, or set CPT_JAX_CACHE to another folder'
        ) from None


def _read_checksum(file: InputFile) -> Checksum:
    """Returns the checksum of a file's content, without .gz."""
    checksum = Checksum(0, 0)
    with tqdm(disable=True) as bar:
        for block in _read_blocks(file, bar):
            checksum = checksum.add(block)
    return checksum


def _read_blocks(file: InputFile, bar: tqdm) -> Iterator[bytes]:
    """Yields the content of a file, without .gz.

    Raises:
      UserError: the gzip file is damaged.
    """
    try:
        with file.path.open('rb') as original:
            content = gzip.open(original) if _is_gzipped(file) else original
            position = 0
            while block := content.read(_BLOCK_BYTES):
                yield block
                bar.update(original.tell() - position)
                position = original.tell()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f'{file.original_path}: a broken gzip file ({error}): download it again'
        ) from None


def _store_checksum(copy: Path, checksum: Checksum) -> None:
    """Stores the checksum of a copy, with the stamp of the file as it is now."""
    stamped = checksum._replace(stamp=compute_file_stamp(copy))
    write_checksums(copy.parent, {copy.name: stamped})
