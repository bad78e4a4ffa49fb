"""ArrayRecord files that are either complete or absent."""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# One record a group, so that reading one decompresses no other.
_OPTIONS = 'group_size:1'


@contextmanager
def open_records(path: Path) -> Iterator[Any]:
    """Opens an ArrayRecord file for writing; it appears at `path` at the end of the block.

    Yields:
      A writer with `write(bytes)`.

    Raises:
      OSError: the file cannot be written, for example because the disk is full.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    # Two processes may write the same file, if one has lost its parent and is about to end.
    temporary = path.with_name(f'{path.name}.{os.getpid()}.part')
    writer = ArrayRecordWriter(str(temporary), _OPTIONS)
    try:
        yield writer
        writer.close()
        os.replace(temporary, path)
    except RuntimeError as error:  # ArrayRecord raises it for everything, at the end
        temporary.unlink(missing_ok=True)
        raise OSError(errno.EIO, ' '.join(str(error).split()), str(path)) from None
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
