"""Packed input files: copies that can be read from any place, in the cache."""

import gzip
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from cpt_jax.data.files import InputFile, files_state
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.atomic_write import replacing
from cpt_jax.storage.cache import cache_folder

PACKED = '.gz'


def unpacked(files: Sequence[InputFile]) -> list[InputFile]:
    """The same files, where one is packed with the name that it has unpacked and the path of a
    copy, which an earlier call may have left.

    Raises:
      UserError: a file is there both packed and not, which would give its rows twice; it cannot be
        unpacked, or there is no room.
    """
    found = [InputFile(file.name.removesuffix(PACKED), file.path) for file in files]
    twice = [name for name, count in Counter(file.name for file in found).items() if count > 1]
    if twice:
        raise UserError(
            f'path: {twice[0]} is there packed and unpacked, and its rows would count twice: '
            f'remove one of them'
        )
    missing = [file for file in found if _is_packed(file) and not _copy(file).exists()]
    total = sum(file.path.stat().st_size for file in missing)
    with tqdm(
        total=total, desc='unpacking', unit='B', unit_scale=True, disable=None if missing else True
    ) as bar:
        for file in missing:
            _unpack(file.path, _copy(file), bar)
    return [
        InputFile(file.name, _copy(file), file.path) if _is_packed(file) else file for file in found
    ]


def _is_packed(file: InputFile) -> bool:
    return file.path.name.endswith(PACKED)


def _copy(file: InputFile) -> Path:
    return cache_folder() / 'unpacked' / files_state([file]) / Path(file.name).name


def _unpack(path: Path, copy: Path, bar: tqdm) -> None:
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with path.open('rb') as packed, replacing(copy) as whole, gzip.open(packed) as content:
            before = 0
            while block := content.read(1 << 22):
                whole.write(block)
                bar.update(packed.tell() - before)
                before = packed.tell()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f'{path}: a broken gzip file ({error}): download it again') from None
    except OSError as error:
        raise UserError(
            f'{path}: cannot be unpacked into {copy.parent} ({error}): CPT_JAX_CACHE names '
            f'another folder for it'
        ) from None
