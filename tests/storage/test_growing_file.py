"""Files that grow: whole lines, closed after every write, not too often."""

import pytest

from cpt_jax.storage import growing_file
from cpt_jax.storage.growing_file import GrowingFile
from cpt_jax.storage.paths import as_path


@pytest.fixture
def now(monkeypatch):
    """A list whose only element is the time, in seconds."""
    seconds = [100.0]
    monkeypatch.setattr(growing_file.time, 'monotonic', lambda: seconds[0])
    return seconds


@pytest.mark.parametrize('storage', ['disk', 'bucket'])
def test_rows_wait_at_most_until_the_next_write(tmp_path, request, now, storage):
    folder = tmp_path
    if storage == 'bucket':
        folder = as_path(request.getfixturevalue('gs_bucket'))
    path = folder / 'metrics.jsonl'
    path.write_text('1\n')
    file = GrowingFile(path)
    file.append(b'2\n')
    assert path.read_text() == '1\n2\n'
    now[0] += 1
    file.append(b'3\n')
    file.append(b'4\n')
    file.write_if_due()
    assert path.read_text() == '1\n2\n'  # the last write was less than two seconds ago
    now[0] += 1
    file.write_if_due()
    assert path.read_text() == '1\n2\n3\n4\n'
    file.append(b'5\n')
    file.write()
    assert path.read_text() == '1\n2\n3\n4\n5\n'
