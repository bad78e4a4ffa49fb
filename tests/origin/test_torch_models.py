"""Directories whose weights are pytorch_model.bin."""

import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from cpt_jax.embed.load import load_embedder
from cpt_jax.model.formats.llama2c import find_llama2c_file
from cpt_jax.model.formats.torch_files import TorchFile
from cpt_jax.origin.pretrained import find_directory, is_pretrained
from cpt_jax.runtime.errors import UserError
from tests.goldens.golden import read_golden, restore
from tests.model.formats.torch_inputs import FORMATS, write_torch_file
from tests.model.formats.weight_inputs import LAYOUTS

TEXTS = ['list file parser', 'Upper Case', '']
pytestmark = pytest.mark.usefixtures('persistent_compilation_cache')


@pytest.fixture(scope='module')
def plain(tmp_path_factory) -> Path:
    golden = read_golden('pretrained')
    return restore(golden.facts['plain']['bert'], tmp_path_factory.mktemp('plain'))


def convert(folder: Path, target: Path) -> dict[str, np.ndarray]:
    """Copies a model without its weights, which are returned."""
    shutil.copytree(folder, target)
    (target / 'model.safetensors').unlink()
    return load_file(folder / 'model.safetensors')


def test_vectors_are_those_of_safetensors(plain, tmp_path):
    expected = load_embedder(str(plain))(TEXTS, 'x')
    for kind in FORMATS:
        tensors = convert(plain, tmp_path / kind)
        write_torch_file(tmp_path / kind / 'pytorch_model.bin', tensors, kind)
        assert is_pretrained(str(tmp_path / kind))
        np.testing.assert_array_equal(load_embedder(str(tmp_path / kind))(TEXTS, 'x'), expected)
    tensors = convert(plain, tmp_path / 'shards')
    LAYOUTS['bin: shards'](tensors, tmp_path / 'shards')
    np.testing.assert_array_equal(load_embedder(str(tmp_path / 'shards'))(TEXTS, 'x'), expected)


def test_llama2c_and_torch_files_are_not_confused(plain, tmp_path):
    tensors = convert(plain, tmp_path / 'bert')
    (tmp_path / 'bert' / 'config.json').unlink()
    for kind in FORMATS:
        write_torch_file(tmp_path / 'bert' / 'pytorch_model.bin', tensors, kind)
        assert find_llama2c_file(tmp_path / 'bert') is None
        assert not is_pretrained(str(tmp_path / 'bert'))
    stories = tmp_path / 'pytorch_model.bin'
    # A header with absurd numbers of layers, which are not counted one by one.
    stories.write_bytes(np.full(100, 2**30, '<i4').tobytes())
    assert find_llama2c_file(tmp_path) is None
    with pytest.raises(UserError, match='it is not a file of torch.save'):
        TorchFile(stories)


def test_model_in_a_bucket_is_copied_with_one_format(plain, tmp_path, monkeypatch):
    monkeypatch.setenv('CPT_JAX_CACHE', str(tmp_path / 'cache'))
    store = fsspec.filesystem('memory')
    tensors = convert(plain, tmp_path / 'bert')
    write_torch_file(tmp_path / 'bert' / 'pytorch_model.bin', tensors)
    (tmp_path / 'bert' / '2_Dense').mkdir()
    (tmp_path / 'bert' / '2_Dense' / 'pytorch_model.bin').write_bytes(b'')
    (tmp_path / 'bert' / 'optimizer.bin').write_bytes(b'')
    find_directory.cache_clear()
    try:
        store.put(str(tmp_path / 'bert'), '/torch/bert', recursive=True)
        found = list_files(find_directory('memory://torch/bert'))
        assert {'pytorch_model.bin', '2_Dense/pytorch_model.bin', 'config.json'} <= found
        assert 'optimizer.bin' not in found
        store.put(str(tmp_path / 'bert'), '/torch/both', recursive=True)
        store.pipe('/torch/both/model.safetensors', (plain / 'model.safetensors').read_bytes())
        found = list_files(find_directory('memory://torch/both'))
        assert {'model.safetensors', '2_Dense/pytorch_model.bin'} <= found
        assert 'pytorch_model.bin' not in found
    finally:
        find_directory.cache_clear()
        store.store.clear()
        store.pseudo_dirs[:] = ['']


def list_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()}
