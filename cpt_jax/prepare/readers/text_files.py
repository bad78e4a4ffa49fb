"""Documents of text and Markdown files, read in blocks."""

import codecs
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from cpt_jax.data.text_documents import compile_separator
from cpt_jax.prepare.document import Document, Unreadable
from cpt_jax.prepare.readers.compressed import BrokenFile, iterate_lines, open_input

SUFFIXES = ('.txt', '.md')
_BLOCK_BYTES = 1 << 20


def read_text_file(
    path: Path, name: str, separator: str = '', max_document_mb: float = 100.0
) -> Iterator[Document | Unreadable]:
    """Yields the documents of a file. A file that is not UTF-8 is read as Latin-1.

    Args:
      path: the file.
      name: its name in the source.
      separator: regular expression. A line that contains a match begins a new document. '': the
        file is one document.
      max_document_mb: maximum megabytes of a document, which is held in memory.
    """
    pattern = compile_separator(separator)
    try:
        encoding = _find_encoding(path)
        with open_input(path) as file:
            lines = _decode_lines(iterate_lines(file, int(max_document_mb * 1e6)), encoding)
            documents = split_into_documents(lines, pattern, int(max_document_mb * 1e6))
            for ordinal, text in enumerate(documents):
                identity = f'{name}#{ordinal}'
                if text is None:
                    yield Unreadable(identity, f'longer than {max_document_mb:g} MB')
                else:
                    yield Document(text, identity, {'path': name})
    except BrokenFile as error:
        yield Unreadable(name, error.kind, error.detail, ends_file=True)


def check_text_reader(separator: str = '', max_document_mb: float = 100.0) -> None:
    """Raises UserError if the arguments of `read_text_file` are invalid."""
    del max_document_mb
    compile_separator(separator)


def _find_encoding(path: Path) -> str:
    """Returns 'utf-8-sig' or 'latin-1'.

    Raises:
      BrokenFile: the file contains a zero byte, or cannot be read.
    """
    decoder = codecs.getincrementaldecoder('utf-8')()
    encoding = 'utf-8-sig'
    with open_input(path) as file:
        while block := file.read(_BLOCK_BYTES):
            if b'\0' in block:
                raise BrokenFile('not text', 'it contains zero bytes')
            try:
                decoder.decode(block)
            except UnicodeDecodeError:
                encoding = 'latin-1'
                decoder.reset()
    try:
        decoder.decode(b'', final=True)
    except UnicodeDecodeError:
        encoding = 'latin-1'
    return encoding


def _decode_lines(lines: Iterable[bytes], encoding: str) -> Iterator[str]:
    """Yields the lines of `text.splitlines()`, which also ends lines at \\r and form feeds."""
    for number, line in enumerate(lines):
        decoded = line.decode('latin-1' if encoding == 'latin-1' else 'utf-8', 'replace')
        if number == 0 and encoding == 'utf-8-sig':
            decoded = decoded.removeprefix('\ufeff')
        yield from decoded.splitlines() or ['']


def split_into_documents(
    lines: Iterable[str], separator: re.Pattern | None, max_characters: int
) -> Iterator[str | None]:
    """Yields the documents, without blank ones; None for one that is too long.

    A separator line is the first line of its document, as in the `text` source.
    """
    part: list[str] = []
    size = 0
    has_words = False
    for line in lines:
        if has_words and separator and separator.search(line):
            yield None if size > max_characters else '\n'.join(part)
            part = []
            size = 0
            has_words = False
        size += len(line) + 1
        has_words = has_words or bool(line.strip())
        if size <= max_characters:
            part.append(line)
    if has_words:
        yield None if size > max_characters else '\n'.join(part)
