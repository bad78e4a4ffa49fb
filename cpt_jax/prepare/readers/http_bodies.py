"""Decodes the bodies of HTTP responses as they are stored in WARC files.

Common Crawl stores them decoded. Other crawlers store what the server sent, in chunks and
compressed; some store a decoded body with the headers of the encoded one.
"""

import re
import zlib
from collections.abc import Mapping

from cpt_jax.prepare.records import BadRecord

_CHUNK_SIZE = re.compile(rb'[ \t]*([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n')
_ZLIB_ENCODINGS = ('gzip', 'x-gzip', 'deflate')
_ARROW_CODECS = {'br': 'brotli', 'zstd': 'zstd'}
_ANY_ZLIB_HEADER = 32 + zlib.MAX_WBITS  # of gzip or zlib


def decode_body(headers: Mapping[str, str], content: bytes, max_bytes: int) -> bytes:
    """Returns the body of a response without its transfer and content encodings.

    Args:
      headers: headers of the response, in which case does not matter.
      content: the stored body.
      max_bytes: maximum length of the result.

    Raises:
      BadRecord: the body is damaged or too long.
    """
    if 'chunked' in (headers.get('Transfer-Encoding') or '').lower():
        content = join_chunks(content)
    encodings = [
        part.strip().lower() for part in (headers.get('Content-Encoding') or '').split(',')
    ]
    for encoding in reversed(encodings):  # the last one was applied last
        # Compressed data do not begin like a page. Other names, such as utf-8, are no compression.
        if content.lstrip().startswith(b'<'):
            break
        if encoding in _ZLIB_ENCODINGS:
            content = _decompress(content, encoding, max_bytes)
        elif encoding in _ARROW_CODECS:
            content = _decompress_with_arrow(content, encoding, max_bytes)
        if len(content) > max_bytes:
            raise BadRecord(f'longer than {max_bytes / 1e6:g} MB')
    return content


def join_chunks(content: bytes) -> bytes:
    """Returns a body that was sent in chunks; a body without chunks is returned as it is.

    Raises:
      BadRecord: the last chunk is missing or cut.
    """
    parts: list[bytes] = []
    position = 0
    while match := _CHUNK_SIZE.match(content, position):
        size = int(match[1], 16)
        if not size:
            return b''.join(parts)
        part = content[match.end() : match.end() + size]
        parts.append(part)
        position = match.end() + size
        if len(part) < size:
            break
        position += 2 if content.startswith(b'\r\n', position) else 1
    if not parts:
        return content
    raise BadRecord('truncated record', 'the last chunk is missing')


def _decompress(content: bytes, encoding: str, max_bytes: int) -> bytes:
    # Some servers send "deflate" without the header of zlib.
    for bits in (_ANY_ZLIB_HEADER, -zlib.MAX_WBITS):
        decoder = zlib.decompressobj(bits)
        try:
            found = decoder.decompress(content, max_bytes + 1)
        except zlib.error as error:
            detail = f'{encoding}: {error}'
            continue
        if not decoder.eof and len(found) <= max_bytes:
            raise BadRecord('truncated record', f'its {encoding} data do not end')
        return found
    raise BadRecord('broken content encoding', detail)


def _decompress_with_arrow(content: bytes, encoding: str, max_bytes: int) -> bytes:
    import pyarrow

    try:
        with pyarrow.input_stream(pyarrow.py_buffer(content), _ARROW_CODECS[encoding]) as stream:
            return stream.read(max_bytes + 1)
    except OSError as error:
        raise BadRecord('broken content encoding', f'{encoding}: {error}') from None
