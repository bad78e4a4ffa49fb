"""Documents of web archives: texts of WET files, and HTML pages of WARC files.

Common Crawl publishes both. Robots rules were applied by the crawler or not at all; this reader
does not look at them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cpt_jax.prepare.document import Document, Unreadable
from cpt_jax.prepare.packages import require_package
from cpt_jax.prepare.readers.http_bodies import decode_body
from cpt_jax.prepare.records import BadRecord

SUFFIXES = ('.warc', '.wet')
_HTML = ('text/html', 'application/xhtml+xml')


def read_web_archive(
    path: Path, name: str, main_content: bool = True, max_document_mb: float = 10.0
) -> Iterator[Document | Unreadable]:
    """Yields a document for each conversion record (WET), and each page with status 200 (WARC).

    A record that is not as long as it says is counted as unreadable. After a record without a valid
    header, the rest of the file cannot be read.

    Args:
      path: the file, which may be compressed.
      name: its name in the source.
      main_content: whether navigation, headers and footers of HTML pages are left out.
      max_document_mb: maximum megabytes of a record, and of its decoded body.
    """
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    number = 0
    limit = int(max_document_mb * 1e6)
    try:
        with path.open('rb') as file:
            types = WarcRecordType.response | WarcRecordType.conversion
            for record in ArchiveIterator(file, record_types=types, parse_http=True):
                number += 1
                where = f'{name}, record {number}'
                if record.content_length > limit:
                    yield Unreadable(where, f'longer than {max_document_mb:g} MB')
                    continue
                content = record.reader.read()
                if len(content) != record.content_length:
                    lengths = f'{len(content):,} of {record.content_length:,} bytes'
                    yield Unreadable(where, 'truncated record', lengths)
                    continue
                try:
                    text = _extract_text(record, content, main_content, limit)
                except BadRecord as error:
                    yield Unreadable(where, error.kind, error.detail)
                    continue
                if text is not None:
                    url = record.headers.get('WARC-Target-URI') or ''
                    date = record.headers.get('WARC-Date') or ''
                    fields = {'url': url, 'date': date, 'path': name}
                    yield Document(text, f'{where} {url}', fields)
    except OSError as error:  # FastWARC raises it for everything
        kind = 'unreadable file' if error.errno else 'broken record'
        detail = ' '.join(str(error).split())
        yield Unreadable(f'{name}, record {number + 1}', kind, detail, ends_file=True)


def _extract_text(record: Any, content: bytes, main_content: bool, limit: int) -> str | None:
    """Returns the text of a record; None if it is no page.

    Raises:
      BadRecord: its body cannot be decoded, or is longer than `limit` bytes.
    """
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    if record.http_headers is None:
        return content.decode('utf-8', 'replace')
    kind = record.http_content_type or ''
    if record.http_headers.status_code not in (200, None):
        return None
    if kind not in (*_HTML, 'text/plain'):
        return None
    content = decode_body(record.http_headers, content, limit)
    charset = record.http_charset or ''
    try:
        text = bytes_to_str(content, charset)
    except LookupError:  # missing or unknown
        text = bytes_to_str(content, detect_encoding(content) or 'utf-8')
    return extract_plain_text(text, main_content=main_content) if kind in _HTML else text


def check_web_archives(**arguments: Any) -> None:
    """Raises UserError if the packages of this reader are not installed."""
    del arguments
    for name in ('fastwarc', 'resiliparse'):
        require_package(name, 'reader web')
