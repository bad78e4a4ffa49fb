import os
from pathlib import Path

import numpy as np
import pytest

from cpt_jax.storage.cache import cache_folder, cached, from_array, to_array


def counted(calls):
    def build():
        calls.append(1)
        return {'a': np.arange(5), 'b': to_array({'text': 'é', 'list': [1, None]})}

    return build


def test_second_call_reads_the_file(cache):
    calls = []
    first, second = cached('name', counted(calls)), cached('name', counted(calls))
    assert len(calls) == 1
    np.testing.assert_array_equal(first['a'], second['a'])
    assert from_array(second['b']) == {'text': 'é', 'list': [1, None]}
    assert [path.name for path in cache.iterdir()] == ['name.npz']


def test_other_name_is_built():
    calls = []
    cached('name', counted(calls))
    cached('other', counted(calls))
    assert len(calls) == 2


NUMBERS = np.arange(5).tobytes()


@pytest.mark.parametrize(
    'damage',
    [
        lambda b: b'',
        lambda b: b[: len(b) // 2],
        lambda b: b'x' * 100,
        lambda b: b.replace(NUMBERS, NUMBERS[::-1]),
    ],
    ids=['empty', 'cut', 'rubbish', 'bits'],
)
def test_broken_file_is_built_again(cache, damage):
    calls = []
    cached('name', counted(calls))
    path = cache / 'name.npz'
    whole = path.read_bytes()
    assert NUMBERS in whole
    path.write_bytes(damage(whole))
    np.testing.assert_array_equal(cached('name', counted(calls))['a'], np.arange(5))
    assert len(calls) == 2
    assert path.read_bytes() == whole


def test_failed_build_leaves_nothing(cache):
    with pytest.raises(ZeroDivisionError):
        cached('name', lambda: {'a': np.array(1 // 0)})
    assert not cache.exists() or not list(cache.iterdir())


def test_folder_that_cannot_be_written_costs_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('CPT_JAX_CACHE', str(tmp_path / 'file' / 'below'))
    np.testing.assert_array_equal(cached('name', counted([]))['a'], np.arange(5))
    assert 'cannot be written' in caplog.text


def test_default_folder(monkeypatch):
    monkeypatch.delenv('CPT_JAX_CACHE')
    assert cache_folder() == Path(os.path.expanduser('~/.cache/cpt_jax'))
