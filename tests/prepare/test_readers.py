import gzip
import json
import zlib

import numpy as np
import pyarrow
import pytest
import tensorflow_datasets as tfds
from pyarrow import parquet

from cpt_jax.data.sources.tfds_pairs import TfdsSource
from cpt_jax.prepare.document import Unreadable
from cpt_jax.prepare.readers.parquet import read_parquet_file
from cpt_jax.prepare.readers.web_archives import read_web_archive
from cpt_jax.prepare.run import prepare
from cpt_jax.runtime.errors import UserError
from tests.prepare.helpers import get_texts, make_config, make_document

TEXTS = [make_document(i).replace('\n', '\n\n') + ' é.' for i in range(6)]


class Articles(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The texts as a tfds data set."""

    __module__ = 'articles'
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
        features = {'body': {'text': tfds.features.Text()}, 'n': np.int64}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples()}

    def _generate_examples(self):
        for i, text in enumerate(TEXTS):
            yield i, {'body': {'text': text}, 'n': i}


def make_record(body: bytes, kind: str, headers: str) -> bytes:
    """Returns a WARC record."""
    lines = [
        'WARC/1.0', f'WARC-Type: {kind}', 'WARC-Target-URI: http://a.b/c', headers,
        'WARC-Date: 2026-01-01T00:00:00Z', f'Content-Length: {len(body)}', '', '',
    ]  # fmt: skip
    return '\r\n'.join(lines).encode() + body + b'\r\n\r\n'


def make_page(text: str) -> bytes:
    """Returns a WARC record of an HTML page with navigation."""
    paragraphs = ''.join(f'<p>{part}</p>' for part in text.split('\n\n'))
    body = f'<html><body><nav>menu</nav><main>{paragraphs}</main></body></html>'.encode()
    http = b'HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n' + body
    return make_record(http, 'response', 'Content-Type: application/http; msgtype=response')


def write_forms(folder):
    """Writes the texts in each form; returns the keys of its source by its name."""
    for name in ('text', 'jsonl', 'parquet', 'tfds', 'wet', 'warc'):
        (folder / name).mkdir()
    for i, text in enumerate(TEXTS):
        (folder / f'text/{i}.md').write_text(text)
    rows = [{'body': {'text': text}, 'id': i} for i, text in enumerate(TEXTS)]
    lines = '\n'.join(map(json.dumps, rows)).encode()
    (folder / 'jsonl/a.jsonl.gz').write_bytes(gzip.compress(lines))
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / 'parquet/a.parquet')
    Articles(data_dir=str(folder / 'tfds'), file_format='array_record').download_and_prepare()
    texts = [make_record(t.encode(), 'conversion', 'Content-Type: text/plain') for t in TEXTS]
    (folder / 'wet/a.warc.wet.gz').write_bytes(b''.join(map(gzip.compress, texts)))
    pages = [gzip.compress(make_page(text)) for text in TEXTS]
    (folder / 'warc/a.warc.gz').write_bytes(b''.join(pages))
    nested = {'text': 'body/text'}
    return {
        'text': {'reader': 'text'},
        'jsonl': {'reader': 'jsonl', **nested},
        'parquet': {'reader': 'parquet', **nested},
        'tfds': {'reader': 'tfds', **nested},
        'wet': {'reader': 'web'},
        'warc': {'reader': 'web'},
    }


@pytest.fixture(scope='module')
def forms(tmp_path_factory):
    folder = tmp_path_factory.mktemp('forms')
    return folder, write_forms(folder)


def test_documents_give_the_same_pairs_in_every_form(forms, tmp_path):
    folder, sections = forms
    pairs = {}
    for name, section in sections.items():
        config = make_config(a=section | {'path': str(folder / name)})
        summary = prepare(config, tmp_path / name)
        assert not summary['total']['unreadable'] and summary['total']['records'] == len(TEXTS)
        pairs[name] = get_texts(tmp_path / name)
    assert all(found == pairs['text'] for found in pairs.values()) and len(pairs['text']) > 10


def test_all_forms_together_are_duplicates(forms, tmp_path):
    folder, sections = forms
    config = make_config(
        **{name: section | {'path': str(folder / name)} for name, section in sections.items()}
    )
    summary = prepare(config, tmp_path / 'output')
    assert summary['total']['dropped']['duplicate'] == 5 * len(TEXTS)


def test_zstd_is_read(tmp_path):
    content = json.dumps({'text': TEXTS[0]}).encode()
    with pyarrow.CompressedOutputStream(str(tmp_path / 'a.jsonl.zst'), 'zstd') as file:
        file.write(content)
    (tmp_path / 'b.jsonl.zst').write_bytes((tmp_path / 'a.jsonl.zst').read_bytes()[:-9])
    config = make_config(a={'reader': 'jsonl', 'path': str(tmp_path)})
    config['output']['max_bad_share'] = 1.0
    summary = prepare(config, tmp_path / 'output')
    assert summary['total']['records'] == 2 and summary['pairs']['train'] > 0
    assert [*summary['total']['unreadable'].values()] == [1]


@pytest.mark.parametrize(
    ('change', 'whole', 'problem'),
    [
        (lambda data: data[:-40], 1, 'truncated record'),
        (lambda data: data.replace(b'WARC/1.0', b'XXXX/1.0'), 0, 'broken record'),
        (lambda data: gzip.compress(data)[:-60], 1, 'truncated record'),
        (lambda data: data.replace(b'200 OK', b'404 No'), 0, None),
        (lambda data: data.replace(b'text/html', b'image/png'), 0, None),
    ],
)
def test_broken_web_records_are_named(tmp_path, change, whole, problem):
    path = tmp_path / 'a.warc.gz'
    path.write_bytes(change(make_page(TEXTS[0]) + make_page(TEXTS[1])))
    found = [*read_web_archive(path, 'a.warc.gz')]
    bad = [each for each in found if isinstance(each, Unreadable)]
    assert len(found) - len(bad) == whole
    assert [each.kind for each in bad] == [problem] * bool(problem)
    assert all(each.where.startswith('a.warc.gz, record ') for each in bad)


def test_rows_of_parquet_that_are_not_utf8_are_counted(tmp_path):
    cells = pyarrow.array([b'a', b'\xff', b'c'])
    texts = pyarrow.Array.from_buffers(pyarrow.string(), len(cells), cells.buffers())
    parquet.write_table(pyarrow.Table.from_arrays([texts], ['text']), tmp_path / 'a.parquet')
    first, bad, last = read_parquet_file(tmp_path / 'a.parquet', 'a.parquet')
    assert (first.text, last.text, last.identity) == ('a', 'c', 'a.parquet:3')
    assert (bad.where, bad.kind) == ('a.parquet:2', 'not UTF-8')


def test_page_in_an_unknown_charset_is_read(tmp_path):
    page = make_page(TEXTS[0]).replace(b'charset=utf-8', b'charset=utf_9')
    (tmp_path / 'a.warc').write_bytes(page)
    (document,) = read_web_archive(tmp_path / 'a.warc', 'a.warc')
    assert document.text.endswith('\u00e9.')


def chunk(body: bytes) -> bytes:
    """Returns a body in chunks of 50 bytes."""
    parts = [body[i : i + 50] for i in range(0, len(body), 50)]
    return b''.join(b'%x\r\n%s\r\n' % (len(part), part) for part in parts) + b'0\r\n\r\n'


def compress_brotli(body: bytes) -> bytes:
    return pyarrow.Codec('brotli').compress(body, asbytes=True)


@pytest.mark.parametrize(
    ('headers', 'encode', 'problem'),
    [
        ('Content-Encoding: gzip', gzip.compress, None),
        ('content-encoding: br', compress_brotli, None),
        ('Content-Encoding: deflate', lambda body: zlib.compress(body)[2:-4], None),
        ('Transfer-Encoding: chunked', chunk, None),
        (
            'Transfer-Encoding: chunked\r\nContent-Encoding: gzip',
            lambda body: chunk(gzip.compress(body)),
            None,
        ),
        ('Content-Encoding: gzip', bytes, None),  # stored decoded
        ('Transfer-Encoding: chunked', bytes, None),
        ('Content-Encoding: utf-8', bytes, None),
        ('Content-Encoding: gzip', lambda body: gzip.compress(body)[:-20], 'truncated record'),
        ('Content-Encoding: gzip', lambda body: b'nonsense', 'broken content encoding'),
        ('Content-Encoding: br', lambda body: b'nonsense', 'broken content encoding'),
        ('Transfer-Encoding: chunked', lambda body: chunk(body)[:-9], 'truncated record'),
        ('Content-Encoding: gzip', lambda body: gzip.compress(body * 9), 'longer than 0.01 MB'),
    ],
)
def test_bodies_of_pages_are_decoded(tmp_path, headers, encode, problem):
    def make_response(body: bytes, headers: str) -> bytes:
        http = f'HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n{headers}\r\n\r\n'
        kind = 'Content-Type: application/http; msgtype=response'
        return make_record(http.encode() + body, 'response', kind)

    text = TEXTS[0].replace('\n\n', ' ')
    body = f'<html><body><main><p>{text}</p></main></body></html>'.encode() + b' ' * 1000
    records = [make_response(encode(body), headers), make_response(body, 'X: y')]
    (tmp_path / 'a.warc').write_bytes(b''.join(records))
    first, second = read_web_archive(tmp_path / 'a.warc', 'a.warc', max_document_mb=0.01)
    assert second.text.strip() == text  # whatever the first record is
    if problem:
        assert first.kind == problem and first.where == 'a.warc, record 1'
    else:
        assert first.text.strip() == text


@pytest.mark.parametrize('form', ['parquet', 'tfds'])
def test_broken_tables_are_named(forms, tmp_path, form):
    folder, sections = forms
    marks = ('.parquet', '.array_record-')
    paths = (folder / form).rglob('*')
    source = next(path for path in paths if any(mark in path.name for mark in marks))
    copy = tmp_path / 'in' / source.name
    copy.parent.mkdir()
    copy.write_bytes(source.read_bytes()[:-100])
    for other in source.parent.glob('*.json'):
        (copy.parent / other.name).write_bytes(other.read_bytes())
    config = make_config(a=sections[form] | {'path': str(copy)})
    config['output']['max_bad_share'] = 0.5
    with pytest.raises(UserError, match='1 of 1 records cannot be read, most often broken'):
        prepare(config, tmp_path / 'output')


def test_rows_of_code_search_net(tmp_path):
    rows = [
        {
            'repo': f'user/project{i % 5}', 'path': 'a.py', 'language': 'python',
            'docstring': f'Adds {i}.\n\nArgs:\n  x: number.',
            'code': f'def add(x):\n  """Adds {i}.\n\n  More."""\n  return x + {i}',
        }
        for i in range(12)
    ]  # fmt: skip
    (tmp_path / 'a.jsonl').write_text('\n'.join(map(json.dumps, [*rows, rows[0]])))
    section = {'reader': 'jsonl', 'path': str(tmp_path / 'a.jsonl'), 'text': 'code'}
    config = make_config(a=section | {'pairs': 'codesearchnet'})
    config['output'] |= {'fields': ('repo', 'path'), 'holdout': 0.5}
    summary = prepare(config, tmp_path / 'output')
    assert summary['total']['dropped']['duplicate'] == 1
    assert ('Adds 3.', 'def add(x):\n  return x + 3') in get_texts(tmp_path / 'output')
    builder = tfds.builder_from_directory(tmp_path / 'output')
    repositories = [{row['repo'] for row in builder.as_data_source(s)} for s in builder.info.splits]
    assert sum(map(len, repositories)) == 5


def test_a_list_of_answers_makes_pairs_of_one_document(tmp_path):
    lines = [
        json.dumps({'q': f'question {i}?', 'a': [f'yes {i}', f'no {i}'], 'neg': ['maybe', '']})
        for i in range(9)
    ]
    (tmp_path / 'a.jsonl').write_text('\n'.join(lines))
    section = {'reader': 'jsonl', 'path': str(tmp_path / 'a.jsonl'), 'text': 'q', 'pairs': 'fields'}
    config = make_config(a=section | {'x': 'q', 'y': 'a', 'negatives': 'neg'})
    config['output']['holdout'] = 0.0
    prepare(config, tmp_path / 'output')
    source = TfdsSource(path=str(tmp_path / 'output'), split='train')
    assert source.documents.tolist() == [*range(0, 19, 2)]
    assert source[1].negatives == ('maybe',) and source[1].y == 'no 0'
