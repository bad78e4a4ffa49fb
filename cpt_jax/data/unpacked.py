"""Decompresses gzipped input files into the cache, for random access."""

import gzip
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from cpt_jax.data.files import InputFile, digest_file_stats
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.atomic_write import open_atomically
from cpt_jax.storage.cache import get_cache_folder

GZIP_SUFFIX = '.gz'


def decompress_files(files: Sequence[InputFile]) -> list[InputFile]:
    """Returns the files, with gzipped ones replaced by decompressed copies in the cache.

    A copy has the name without .gz. Existing copies are reused.

    Raises:
      UserError: a file exists with and without .gz, a file is damaged, or it cannot be written.
    """
    found = [InputFile(file.name.removesuffix(GZIP_SUFFIX), file.path) for file in files]
    repeated = [name for name, count in Counter(file.name for file in found).items() if count > 1]
    if repeated:
        raise UserError(
            f'path: {repeated[0]} exists with and without {GZIP_SUFFIX}, so its rows would count '
            f'twice: remove one of the two files'
        )
    missing = [file for file in found if _is_gzipped(file) and not _get_copy_path(file).exists()]
    total = sum(file.path.stat().st_size for file in missing)
    with tqdm(
        total=total, desc='unpacking', unit='B', unit_scale=True, disable=None if missing else True
    ) as bar:
        for file in missing:
            _decompress_file(file.path, _get_copy_path(file), bar)
    return [
        InputFile(file.name, _get_copy_path(file), file.path) if _is_gzipped(file) else file
        for file in found
    ]


def _is_gzipped(file: InputFile) -> bool:
    return file.path.name.endswith(GZIP_SUFFIX)


def _get_copy_path(file: InputFile) -> Path:
    return get_cache_folder() / 'unpacked' / digest_file_stats([file]) / Path(file.name).name


def _decompress_file(path: Path, copy: Path, bar: tqdm) -> None:
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with (
            path.open('rb') as compressed,
            open_atomically(copy) as output,
            gzip.open(compressed) as content,
        ):
            position = 0
            while block := content.read(1 << 22):
                output.write(block)
                bar.update(compressed.tell() - position)
                position = compressed.tell()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f'{path}: a broken gzip file ({error}): download it again') from None
    except OSError as error:
        raise UserError(
            f'{path}: cannot be decompressed into {copy.parent} ({error}): free space there, or '
            f'set CPT_JAX_CACHE to another folder'
        ) from None
