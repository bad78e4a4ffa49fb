"""Opens input files that may be compressed, and names what is wrong with a broken one."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

# Suffixes that are added to the suffixes of a reader.
COMPRESSIONS = ('', '.gz', '.zst')
_BLOCK_BYTES = 1 << 20


class BrokenFile(Exception):
    """A file cannot be read to its end.

    Attributes:
      kind: short name of the problem.
      detail: message of the library.
    """

    def __init__(self, kind: str, detail: object = ''):
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = ' '.join(str(detail).split())


@contextmanager
def open_input(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for reading, decompressed if its name ends in .gz or .zst.

    Raises:
      BrokenFile: here or in the block, the file cannot be opened, read or decompressed.
    """
    try:
        if path.name.endswith('.gz'):
            with gzip.open(path, 'rb') as file:
                yield cast('BinaryIO', file)
        elif path.name.endswith('.zst'):
            import pyarrow

            with pyarrow.input_stream(str(path), 'zstd', _BLOCK_BYTES) as stream:
                yield cast('BinaryIO', io.BufferedReader(stream, _BLOCK_BYTES))
        else:
            with path.open('rb', buffering=_BLOCK_BYTES) as file:
                yield file
    except EOFError as error:
        raise BrokenFile('truncated file', error) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise BrokenFile('broken gzip file', error) from None
    except OSError as error:  # pyarrow raises OSError without a number for broken zstd
        if error.errno is None:
            raise BrokenFile('broken zstd file', error) from None
        raise BrokenFile('unreadable file', error.strerror or error) from None


def iterate_lines(file: BinaryIO, max_bytes: int) -> Iterator[bytes]:
    """Yields the lines of a file without their ends.

    Args:
      file: a file that need not have `readline`, as those of pyarrow.
      max_bytes: maximum length of a line; only the beginning of a longer one is yielded, one byte
        longer than this.
    """
    rest = b''
    while block := file.read(_BLOCK_BYTES):
        *lines, last = block.split(b'\n')
        if lines:
            yield (rest + lines[0])[: max_bytes + 1]
            yield from (line[: max_bytes + 1] for line in lines[1:])
            rest = b''
        if len(rest) <= max_bytes:
            rest += last
    if rest:
        yield rest[: max_bytes + 1]
