import os

import pytest

from cpt_jax.data.files import digest_file_states, find_input_files
from cpt_jax.runtime.errors import UserError


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / 'data'
    for name in (
        'b.txt',
        'a.txt',
        'deep/c.md',
        'd.json',
        '_SOURCE.txt',
        '.hidden.txt',
        '_notes/e.txt',
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def names(path):
    return [file.name for file in find_input_files(str(path), ('.txt', '.md'))]


def test_folder_gives_its_files_sorted_by_name(folder):
    assert names(folder) == ['a.txt', 'b.txt', 'deep/c.md']
    assert find_input_files(str(folder), ('.json',))[0].path.read_text() == 'd.json'


def test_file_with_any_suffix_is_accepted(folder):
    assert names(folder / 'd.json') == ['d.json']
    assert names(folder / '_SOURCE.txt') == ['_SOURCE.txt']


def test_patterns_are_expanded(folder):
    assert names(folder / '*.txt') == ['a.txt', 'b.txt']
    assert names(folder / '**' / '*') == ['a.txt', 'b.txt', 'd.json', 'deep/c.md']
    assert names(folder / 'd*' / 'c.md') == ['deep/c.md']


def test_home_is_expanded(folder, monkeypatch):
    monkeypatch.setenv('HOME', str(folder.parent))
    assert names('~/data') == ['a.txt', 'b.txt', 'deep/c.md']


def test_path_in_a_hidden_folder_is_read(folder, tmp_path):
    folder.rename(tmp_path / '.data')
    assert names(tmp_path / '.data') == ['a.txt', 'b.txt', 'deep/c.md']


@pytest.mark.parametrize('path', ['nowhere', 'data/*.csv', 'data/deep/empty'])
def test_path_without_files_is_refused(folder, tmp_path, path):
    (folder / 'deep' / 'empty').mkdir()
    with pytest.raises(
        UserError,
        match=r"^path: '.*"
        + path.replace('*', r'\*')
        + r"' is not a file, not a folder with \*.txt or \*.md files",
    ):
        find_input_files(str(tmp_path / path), ('.txt', '.md'))


def test_digest_changes_with_a_file(folder):
    before = digest_file_states(find_input_files(str(folder), ('.txt',)))
    assert before == digest_file_states(find_input_files(str(folder), ('.txt',)))
    os.utime(folder / 'a.txt', ns=(1, 1))
    touched = digest_file_states(find_input_files(str(folder), ('.txt',)))
    (folder / 'b.txt').write_text('longer than before')
    assert len({before, touched, digest_file_states(find_input_files(str(folder), ('.txt',)))}) == 3
