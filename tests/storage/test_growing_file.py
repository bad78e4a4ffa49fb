"""Files that grow: whole lines, closed after every write, not too often."""

import errno
import time

import pytest

from cpt_jax.storage import growing_file
from cpt_jax.storage.growing_file import GrowingFile
from cpt_jax.storage.paths import as_path


@pytest.fixture(params=['disk', 'bucket'])
def path(request, tmp_path):
    """A file with one line, on each kind of storage."""
    folder = tmp_path
    if request.param == 'bucket':
        folder = as_path(request.getfixturevalue('gs_bucket'))
    path = folder / 'metrics.jsonl'
    path.write_text('1\n')
    return path


def wait_for(path, text):
    deadline = time.monotonic() + 20
    while path.read_text() != text:
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.02)


def test_rows_wait_at_most_until_the_next_write(path, monkeypatch):
    monkeypatch.setattr(growing_file, 'SECONDS_BETWEEN_WRITES', 0.3)
    file = GrowingFile(path)
    file.append(b'2\n')
    assert path.read_text() == '1\n2\n'
    start = time.monotonic()
    file.append(b'3\n')
    file.append(b'4\n')
    wait_for(path, '1\n2\n3\n4\n')  # without a further call
    assert time.monotonic() - start > 0.2
    file.append(b'5\n')
    file.write()
    assert path.read_text() == '1\n2\n3\n4\n5\n'
    file.append(b'6\n')
    wait_for(path, '1\n2\n3\n4\n5\n6\n')


def test_failed_write_of_the_thread_is_raised_by_the_next_call(tmp_path, monkeypatch):
    monkeypatch.setattr(growing_file, 'SECONDS_BETWEEN_WRITES', 0.01)
    file = GrowingFile(tmp_path / 'metrics.jsonl')
    file.append(b'1\n')
    (tmp_path / 'metrics.jsonl').unlink()
    (tmp_path / 'metrics.jsonl').mkdir()
    file.append(b'2\n')
    time.sleep(0.1)
    with pytest.raises(OSError) as raised:
        file.write()
    assert raised.value.errno == errno.EISDIR
    (tmp_path / 'metrics.jsonl').rmdir()
    file.append(b'3\n')
    assert (tmp_path / 'metrics.jsonl').read_text() == '2\n3\n'
