"""ArrayRecord files that are either complete or absent."""

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# One record a group, so that reading one decompresses no other.
_OPTIONS = 'group_size:1'


class RecordWriter:
    """Writes records into an ArrayRecord file."""

    def __init__(self, writer: Any, path: Path):
        """Wraps a writer.

        Args:
          writer: ArrayRecordWriter.
          path: path of the file, for messages.
        """
        self._writer = writer
        self._path = path

    def write(self, record: bytes) -> None:
        """Writes a record. Raises OSError, for example because the disk is full."""
        self._call(self._writer.write, record)

    def close(self) -> None:
        """Writes the end of the file. Raises OSError, for example because the disk is full."""
        self._call(self._writer.close)

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            function(*arguments)
        except RuntimeError as error:  # ArrayRecord raises it for everything
            detail = ' '.join(str(error).split())
            raise OSError(errno.EIO, detail, str(self._path)) from None


@contextmanager
def open_records(path: Path) -> Iterator[RecordWriter]:
    """Opens an ArrayRecord file for writing; it appears at `path` at the end of the block.

    Yields:
      The writer.

    Raises:
      OSError: the file cannot be written, for example because the disk is full.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    # Two processes may write the same file, if one has lost its parent and is about to end.
    temporary = path.with_name(f'{path.name}.{os.getpid()}.part')
    writer = RecordWriter(ArrayRecordWriter(str(temporary), _OPTIONS), path)
    try:
        yield writer
        writer.close()
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_records(path: Path, indices: Sequence[int]) -> list[bytes]:
    """Returns the records at some indices of an ArrayRecord file."""
    from array_record.python.array_record_module import ArrayRecordReader

    if not len(indices):
        return []
    reader = ArrayRecordReader(str(path), 'readahead_buffer_size:0')
    try:
        return reader.read(list(indices))
    finally:
        reader.close()
