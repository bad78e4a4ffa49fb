import pytest

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_files import read_json_file, write_json


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / 'some.json'
    write_json(path, {'a': 'é'})
    assert path.read_bytes() == '{\n  "a": "é"\n}\n'.encode()
    with pytest.raises(ValueError):
        write_json(path, {'a': float('nan')})
    assert read_json_file(path, optional=True) == {'a': 'é'}
    assert [file.name for file in tmp_path.iterdir()] == ['some.json']


def test_folder_in_place_of_a_file_is_one_line(tmp_path):
    (tmp_path / 'config.json').mkdir()
    with pytest.raises(UserError, match='config.json: cannot be read: Is a directory$'):
        read_json_file(tmp_path / 'config.json')
