"""Reads the documents of text files as streams: no file is held in memory, only one document."""

import codecs
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from cpt_jax.data.files import InputFile
from cpt_jax.runtime.errors import UserError

_BLOCK_BYTES = 1 << 20
_LARGE_DOCUMENT = 100_000_000  # bytes of a document, above which it is probably many documents


class Position(NamedTuple):
    """Place of a document in the files.

    Attributes:
      file_number: index of its file.
      ordinal: index in its file.
    """

    file_number: int
    ordinal: int


class TextDocument(NamedTuple):
    """A document.

    Attributes:
      position: its place in the files.
      name: 'FILE#ORDINAL'; its hash decides whether the document is held out.
      text: content.
    """

    position: Position
    name: str
    text: str


def compile_separator(separator: str) -> re.Pattern | None:
    """Returns the pattern of the lines that begin a document; None if each file is one document.

    Raises:
      UserError: it is not a valid regular expression.
    """
    try:
        return re.compile(separator) if separator else None
    except re.error as error:
        raise UserError(
            f'separator: {separator!r} is not a valid regular expression: {error}'
        ) from None


def iterate_documents(
    files: Sequence[InputFile],
    separator: re.Pattern | None,
    latin: dict[str, None],
    on_read: Callable[[int], None],
    first: Position,
) -> Iterator[TextDocument]:
    """Yields the documents of files in order.

    Args:
      files: the files.
      separator: pattern of the lines that begin a document.
      latin: gets the names of the files that are not UTF-8 and are read as Latin-1, in order.
      on_read: called with the number of bytes of each block that was read.
      first: place of the first document to yield.

    Raises:
      UserError: a file contains zero bytes.
    """
    for file_number, file in enumerate(files[first.file_number :], first.file_number):
        if separator is None and file.path.stat().st_size > _LARGE_DOCUMENT:
            logging.warning(
                '%s: is one document of %.1f GB, which gives one pair per epoch and is held in '
                'memory: set separator to split it into documents',
                file.original_path,
                file.path.stat().st_size / 1e9,
            )
        encoding = _find_encoding(file)
        if encoding == 'latin-1':
            latin[file.name] = None
        lines = _read_lines(file, encoding, on_read)
        for ordinal, text in enumerate(_split_into_documents(lines, separator)):
            position = Position(file_number, ordinal)
            if position >= first:
                yield TextDocument(position, f'{file.name}#{ordinal}', text)


def _find_encoding(file: InputFile) -> str:
    """Returns 'utf-8-sig' or, for a file that is not UTF-8, 'latin-1'.

    Raises:
      UserError: the file contains zero bytes.
    """
    encoding = 'utf-8-sig'
    decoder = codecs.getincrementaldecoder('utf-8')()
    with file.path.open('rb') as source:
        while block := source.read(_BLOCK_BYTES):
            if b'\0' in block:
                raise UserError(
                    f'{file.original_path}: contains zero bytes, so it is not text: remove it from '
                    f'the path'
                )
            if encoding != 'latin-1' and not _decodes(decoder, block):
                encoding = 'latin-1'
    if encoding != 'latin-1' and not _decodes(decoder, b'', final=True):
        encoding = 'latin-1'
    return encoding


def _decodes(decoder: codecs.IncrementalDecoder, block: bytes, final: bool = False) -> bool:
    try:
        decoder.decode(block, final)
    except UnicodeDecodeError:
        return False
    return True


def _read_lines(file: InputFile, encoding: str, on_read: Callable[[int], None]) -> Iterator[str]:
    """Yields the lines of a file: those that `str.splitlines` returns for its whole text."""
    decoder = codecs.getincrementaldecoder(encoding)()
    begun: list[str] = []  # the parts of a line whose end is in a later block
    with file.path.open('rb') as source:
        while block := source.read(_BLOCK_BYTES):
            head, newline, tail = decoder.decode(block).rpartition('\n')
            if newline:
                yield from ''.join([*begun, head, newline]).splitlines()
                begun = []
            begun.append(tail)
            on_read(len(block))
    begun.append(decoder.decode(b'', final=True))
    yield from ''.join(begun).splitlines()


def _split_into_documents(lines: Iterator[str], separator: re.Pattern | None) -> Iterator[str]:
    """Yields the documents of a file, without blank ones.

    A separator line is the first line of its document.
    """
    document: list[str] = []
    for line in lines:
        if separator and separator.search(line) and any(map(str.strip, document)):
            yield '\n'.join(document)
            document = []
        document.append(line)
    if any(map(str.strip, document)):
        yield '\n'.join(document)
