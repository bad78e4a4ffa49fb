"""Copies of remote files, on fsspec's file system in memory and on an emulated bucket."""

import base64
import gzip
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cpt_jax.data.files import find_input_files
from cpt_jax.data.sources.jsonl import JsonlSource
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage import remote
from cpt_jax.storage.cache import get_cache_folder
from cpt_jax.storage.paths import is_remote
from cpt_jax.storage.remote import fetch


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder for each test."""
    monkeypatch.setenv('CPT_JAX_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.fixture
def bucket():
    """A function that writes a file of the store in memory; all files are removed at the end."""
    store = fsspec.filesystem('memory')

    def write(name: str, content: bytes) -> None:
        store.pipe(f'/bucket/{name}', content)

    yield write
    store.store.clear()
    store.pseudo_dirs[:] = ['']


def count_reads(monkeypatch) -> list[str]:
    """Returns a list to which the paths that are read from the store are appended."""
    reads: list[str] = []
    read = MemoryFileSystem.cat_file

    def counting(self, path, *arguments, **options):
        reads.append(path)
        return read(self, path, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, 'cat_file', counting)
    return reads


@pytest.mark.parametrize(
    ('path', 'expected'),
    [('gs://b/x', True), ('gs:/b/x', True), ('s3://b', True), ('a/b', False), ('C:/x', False)],
)
def test_urls_are_remote(path, expected):
    assert is_remote(path) == expected


def test_local_folder_that_looks_like_a_url_is_local(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'abc:').mkdir()
    (tmp_path / 'abc:' / 'rows.jsonl').write_bytes(LINE)
    assert not is_remote('abc:/rows.jsonl')
    assert len(JsonlSource('abc:/rows.jsonl', 'all')) == 1


def test_local_paths_are_returned(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert fetch('~/a', '--input') == tmp_path / 'a' and str(fetch('b/c', '--input')) == 'b/c'


def test_file_and_folder_are_copied_once(bucket, monkeypatch):
    bucket('models/small/config.json', b'{}')
    bucket('models/small/1_Pooling/config.json', b'{"a": 1}')
    bucket('models/small/empty.txt', b'')
    reads = count_reads(monkeypatch)
    folder = fetch('memory://bucket/models/small', '--model')
    assert folder.name == 'small' and (folder / 'empty.txt').read_bytes() == b''
    assert (folder / '1_Pooling' / 'config.json').read_bytes() == b'{"a": 1}'
    file = fetch('memory://bucket/models/small/config.json', '--input')
    assert file.name == 'config.json' and file.read_bytes() == b'{}'
    assert len(reads) == 3
    assert fetch('memory://bucket/models/small/', '--model') == folder
    assert fetch('memory://bucket/models/small/config.json', '--input') == file
    assert len(reads) == 3


def test_changed_file_is_copied_again(bucket):
    bucket('a.txt', b'old')
    assert fetch('memory://bucket/a.txt', '--input').read_bytes() == b'old'
    bucket('a.txt', b'new')
    assert fetch('memory://bucket/a.txt', '--input').read_bytes() == b'new'


@pytest.mark.parametrize('damage', [b'', b'cut', b'flipped!'])
def test_damaged_copy_is_made_again(bucket, caplog, damage):
    bucket('a.txt', b'complete')
    fetch('memory://bucket/a.txt', '--input').write_bytes(damage)
    assert fetch('memory://bucket/a.txt', '--input').read_bytes() == b'complete'
    assert 'damaged: making it again' in caplog.text


def test_interrupted_copy_is_continued(bucket, monkeypatch):
    for i in range(4):
        bucket(f'folder/{i}', b'content %d' % i)
    monkeypatch.setattr(remote, '_PARALLEL_READS', 1)
    read = MemoryFileSystem.cat_file

    def fail_at_third(self, path, *arguments, **options):
        if path.endswith('/2'):
            raise OSError('connection lost')
        return read(self, path, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, 'cat_file', fail_at_third)
    with pytest.raises(UserError, match=r'cannot be read \(connection lost\): start again'):
        fetch('memory://bucket/folder', '--data_dir')
    monkeypatch.setattr(MemoryFileSystem, 'cat_file', read)
    reads = count_reads(monkeypatch)
    folder = fetch('memory://bucket/folder', '--data_dir')
    assert [(folder / str(i)).read_bytes() for i in range(4)] == [
        b'content %d' % i for i in range(4)
    ]
    assert [path[-1] for path in reads] == ['2', '3']


def test_large_file_is_read_in_blocks_in_order(bucket, monkeypatch):
    content = bytes(range(256)) * 50
    bucket('large', content)
    monkeypatch.setattr(remote, '_BLOCK_BYTES', 1000)
    reads = count_reads(monkeypatch)
    assert fetch('memory://bucket/large', '--input').read_bytes() == content
    assert len(reads) == 13


def test_programs_that_ask_at_once_copy_once(bucket, monkeypatch):
    bucket('folder/a', b'a' * 1000)
    reads = count_reads(monkeypatch)
    both = threading.Barrier(4)

    def ask(_):
        both.wait(60)
        return fetch('memory://bucket/folder', '--data_dir')

    with ThreadPoolExecutor(4) as threads:
        (folder,) = set(threads.map(ask, range(4)))
    assert len(reads) == 1 and (folder / 'a').read_bytes() == b'a' * 1000


def test_data_that_do_not_fit_are_an_error_before_they_are_copied(bucket, monkeypatch):
    bucket('a.txt', b'a' * 1000)
    monkeypatch.setattr(remote.cached_copies, 'get_free_bytes', lambda folder: 999)
    reads = count_reads(monkeypatch)
    with pytest.raises(UserError, match=r'^--input memory://bucket/a.txt: 0.0 GB do not fit'):
        fetch('memory://bucket/a.txt', '--input')
    assert not reads


def test_file_that_changes_while_it_is_copied_is_an_error(bucket, monkeypatch):
    bucket('a.txt', b'a' * 10)
    monkeypatch.setattr(MemoryFileSystem, 'cat_file', lambda self, path, *range_: b'a' * 9)
    with pytest.raises(UserError, match='a.txt changed while it was copied: start again'):
        fetch('memory://bucket/a.txt', '--input')
    assert not [*get_cache_folder().rglob('a.txt*')]


ERRORS = {
    'Anonymous caller does not have storage.objects.list access': (401, 'gcloud auth application'),
    'Your default credentials were not found.': (None, 'gcloud auth application'),
    'Forbidden: https://x/y\nno access': (None, 'no permission: ask for the role'),
    'denied': (403, 'no permission: ask for the role'),
    'slow down': (429, 'wait a minute and start again'),
    'Internal\nError': (500, r'cannot be read \(Internal\): start again'),
}


@pytest.mark.parametrize('text', ERRORS)
def test_error_of_the_store_is_one_line(bucket, monkeypatch, text):
    code, expected = ERRORS[text]

    class StoreError(Exception):
        """An error as gcsfs raises it."""

    def fail(self, *arguments, **options):
        error = StoreError(text)
        error.code = code
        raise error

    monkeypatch.setattr(MemoryFileSystem, 'info', fail)
    monkeypatch.setattr(MemoryFileSystem, 'isfile', fail)
    with pytest.raises(UserError, match=expected) as error:
        fetch('memory://bucket/a.txt', '--input')
    assert '\n' not in str(error.value) and str(error.value).startswith('--input memory://bucket/a')


@pytest.mark.parametrize('url', ['memory://bucket/none', 'memory://none/a/*.txt', 'memory://none'])
def test_missing_file_is_one_line(url):
    with pytest.raises(UserError) as error:
        fetch(url, '--model')
    assert str(error.value) == f'--model {url}: no such file, folder or bucket'


def test_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, 'gcsfs', None)
    monkeypatch.delitem(sys.modules['fsspec.registry']._registry, 'gs', raising=False)
    with pytest.raises(
        UserError,
        match=r"--model gs://b/m: needs gcsfs: pip install gcsfs, or pip install 'cpt_jax",
    ):
        fetch('gs://b/m', '--model')
    with pytest.raises(UserError, match='--model nonsense://b/m: cannot be read'):
        fetch('nonsense://b/m', '--model')


def test_name_that_leaves_the_folder_is_refused(bucket, monkeypatch):
    bucket('folder/a', b'')
    listed = {'/bucket/folder/../../a': {'name': '/bucket/a', 'size': 0, 'type': 'file'}}
    monkeypatch.setattr(MemoryFileSystem, 'find', lambda *arguments, **options: listed)
    with pytest.raises(UserError, match=r'the name \.\./\.\./a is not supported'):
        fetch('memory://bucket/folder', '--model')


LINE = b'{"x": "a", "y": "b"}\n'


@pytest.mark.parametrize(
    ('path', 'names'),
    [
        ('data', ['a.jsonl', 'deep/b.jsonl']),
        ('data/', ['a.jsonl', 'deep/b.jsonl']),
        ('data/_notes.jsonl', ['_notes.jsonl']),
        ('data/*.jsonl', ['a.jsonl']),
        ('data/**/*.jsonl', ['a.jsonl', 'deep/b.jsonl']),
        ('d*/deep/*', ['data/deep/b.jsonl']),
        ('x[1]/c.jsonl', ['c.jsonl']),
        ('x[1]', ['c.jsonl']),
        ('x[1]/*.jsonl', ['c.jsonl']),
    ],
)
def test_data_are_found_as_in_a_local_folder(bucket, tmp_path, path, names):
    for name in ('data/a.jsonl', 'data/deep/b.jsonl', 'data/_notes.jsonl', 'data/c.txt'):
        bucket(name, LINE)
    bucket('x[1]/c.jsonl', LINE)
    found = find_input_files(f'memory://bucket/{path}', ('.jsonl',))
    assert [file.name for file in found] == names
    assert all(file.path.read_bytes() == LINE for file in found)
    assert all(str(file.original_path).endswith(f'/{file.name}') for file in found)
    local = tmp_path / 'bucket'
    for name in ('data/a.jsonl', 'data/deep/b.jsonl', 'data/_notes.jsonl', 'data/c.txt'):
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (local / name).write_bytes(LINE)
    (local / 'x[1]').mkdir()
    (local / 'x[1]/c.jsonl').write_bytes(LINE)
    assert [file.name for file in find_input_files(f'{local}/{path}', ('.jsonl',))] == names


def test_source_reads_a_bucket_and_names_its_url_in_errors(bucket):
    bucket('pairs/a.jsonl', LINE * 3)
    source = JsonlSource('memory://bucket/pairs', 'all')
    assert len(source) == 3 and source[2].id == 'a.jsonl:3'
    bucket('pairs/b.jsonl', b'{"x": 1, "y": "b"}\n')
    with pytest.raises(UserError, match=r"^memory://.*bucket/pairs/b\.jsonl:1: 'x' is not text"):
        JsonlSource('memory://bucket/pairs', 'all', max_bad_share=0.01)


def test_google_cloud_storage_is_read_through_gcsfs(emulator, caplog):
    emulator.pipe('bucket/x[1]/a.jsonl', LINE)
    emulator.pipe('bucket/x[1]/deep/b.jsonl.gz', gzip.compress(LINE * 2))
    source = JsonlSource('gs://bucket/x[1]', 'all')
    assert [pair.id for pair in source] == ['a.jsonl:1', 'deep/b.jsonl:1', 'deep/b.jsonl:2']
    copied = fetch('gs://bucket/x[1]/a.jsonl', '--input')
    emulator.pipe('bucket/x[1]/a.jsonl', LINE)  # a new generation of the same content
    assert fetch('gs://bucket/x[1]/a.jsonl', '--input') != copied
    for url in ('gs://bucket/none', 'gs://none/a', 'gs://bucket/x[1]/*.csv'):
        with pytest.raises(UserError, match='no such file, folder or bucket'):
            fetch(url, '--input')
    assert not caplog.records


def test_awkward_names_of_objects_are_taken_literally(emulator):
    names = ['a[1]b', 'a*b', 'what?', '{0}', "it's", '"hi"', 'with space', 'ö œ', '50%20', '#1']
    for name in [*names, 'a:b', 'x=1,y=2', 'a@5', '$HOME', '~tilde', '-dash', 'a..b']:
        emulator.pipe(f'bucket/{name}/rows.jsonl', name.encode())
        for path in (name, f'{name}/rows.jsonl', f'{name}/*.jsonl'):
            (file,) = find_input_files(f'gs://bucket/{path}', ('.jsonl',))
            assert (file.name, file.path.read_text()) == ('rows.jsonl', name)


def test_digest_of_the_bucket_is_compared(emulator):
    """The emulated bucket gives CRC-32C and MD5, as Google Cloud Storage does."""
    emulator.pipe('bucket/a.txt', b'content')
    (file,) = remote.RemoteFiles.find('gs://bucket/a.txt', '--input').files.values()
    assert {*file.hashes} == {'crc32c', 'md5Hash'}
    for hashes in (file.hashes, {'md5Hash': file.hashes['md5Hash']}):
        digest, expected = file._replace(hashes=hashes).start_hash()
        digest.update(b'content')
        assert base64.b64encode(digest.digest()).decode() == expected
