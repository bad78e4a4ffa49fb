import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cpt_jax.storage.cache import array_to_json, get_cache_folder, json_to_array, load_or_build


def make_counting_build(calls):
    """Returns a build function that appends to `calls`."""

    def build():
        calls.append(1)
        return {'a': np.arange(5), 'b': json_to_array({'text': 'é', 'list': [1, None]})}

    return build


def test_second_call_reads_the_file(cache):
    calls = []
    first = load_or_build('name', make_counting_build(calls))
    second = load_or_build('name', make_counting_build(calls))
    assert len(calls) == 1
    np.testing.assert_array_equal(first['a'], second['a'])
    assert array_to_json(second['b']) == {'text': 'é', 'list': [1, None]}
    assert [path.name for path in cache.iterdir()] == ['name.npz']


def test_another_name_is_built_separately():
    calls = []
    load_or_build('name', make_counting_build(calls))
    load_or_build('other', make_counting_build(calls))
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
    ids=['empty', 'truncated', 'garbage', 'changed bytes'],
)
def test_damaged_file_is_built_again(cache, damage):
    calls = []
    load_or_build('name', make_counting_build(calls))
    path = cache / 'name.npz'
    whole = path.read_bytes()
    assert NUMBERS in whole
    path.write_bytes(damage(whole))
    np.testing.assert_array_equal(
        load_or_build('name', make_counting_build(calls))['a'], np.arange(5)
    )
    assert len(calls) == 2
    assert path.read_bytes() == whole


def test_failed_build_writes_no_file(cache):
    with pytest.raises(ZeroDivisionError):
        load_or_build('name', lambda: {'a': np.array(1 // 0)})
    assert not cache.exists() or not list(cache.iterdir())


def test_unwritable_folder_is_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('CPT_JAX_CACHE', str(tmp_path / 'file' / 'below'))
    np.testing.assert_array_equal(load_or_build('name', make_counting_build([]))['a'], np.arange(5))
    assert 'cannot be written' in caplog.text


def test_default_folder_is_in_the_home_directory(monkeypatch):
    monkeypatch.delenv('CPT_JAX_CACHE')
    assert get_cache_folder() == Path(os.path.expanduser('~/.cache/cpt_jax'))


def test_entry_that_two_programs_fill_at_once_is_whole(cache, caplog):
    """Both build, because neither finds the entry; each then writes all of it."""
    both = threading.Barrier(2)

    def build():
        both.wait(60)
        return {'a': np.arange(10**5)}

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda _: load_or_build('name', build), range(2)))
    found.append(load_or_build('name', lambda: {}))
    assert all(np.array_equal(arrays['a'], np.arange(10**5)) for arrays in found)
    assert [path.name for path in cache.iterdir()] == ['name.npz'] and not caplog.records
