"""Of several files, the one that transformers loads is read (tests/oracles/test_torch_files.py)."""

import json

import numpy as np
import pytest

from cpt_jax.model.formats.weight_files import open_weight_files
from cpt_jax.runtime.errors import UserError
from tests.model.formats.weight_inputs import LAYOUTS, Writer

TENSORS = {name: np.full((2, 3), i, np.float32) for i, name in enumerate('abcd')}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_file_is_that_of_transformers(tmp_path, layout):
    LAYOUTS[layout](TENSORS, tmp_path)
    files = open_weight_files(tmp_path)
    assert files.names == TENSORS.keys()
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(files.read(name), array)
        assert files.describe_location(name).endswith(f': {name}')


@pytest.mark.parametrize('format', ['safetensors', 'bin'])
def test_unclear_and_incomplete_shards_are_refused(tmp_path, format):
    writer = Writer(tmp_path, format)
    writer.write_shard(1, {'a': TENSORS['a'], 'b': TENSORS['b']})
    writer.write_shard(2, {'a': TENSORS['c']})
    writer.write_index({'a': 1, 'b': 1, 'c': 2})
    with pytest.raises(
        UserError, match=rf'assigns a to {writer.name_shard(1)}, but .*-00002-of.* other'
    ):
        open_weight_files(tmp_path)
    # An equal copy between the two does not hide the other values.
    writer.write_shard(2, {'a': TENSORS['a'], 'c': TENSORS['c']})
    writer.write_shard(3, {'a': TENSORS['c'], 'd': TENSORS['d']})
    writer.write_index({'a': 1, 'b': 1, 'c': 2, 'd': 3})
    with pytest.raises(
        UserError, match=rf'assigns a to {writer.name_shard(1)}, but .*-00003-of.* other'
    ):
        open_weight_files(tmp_path)
    writer.write_index({'a': 1, 'b': 1, 'c': 2})
    (tmp_path / writer.name_shard(1)).unlink()
    with pytest.raises(UserError, match=rf'1 of 2 shards that {writer.stem}.* lists are missing'):
        open_weight_files(tmp_path)
    for content in ([], {}, {'weight_map': []}, {'weight_map': {'a': 3}}):
        (index,) = tmp_path.glob('*.index.json')
        index.write_text(json.dumps(content))
        with pytest.raises(UserError, match='is not an index of shards'):
            open_weight_files(tmp_path)


def test_other_files_are_listed(tmp_path):
    (tmp_path / 'weights.pt').write_bytes(b'')
    with pytest.raises(UserError, match=r'nor pytorch_model\.bin, nor .*; weights\.pt cannot be'):
        open_weight_files(tmp_path)
