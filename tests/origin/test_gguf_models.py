"""Models in GGUF files, as `--model` and `init_from`."""

import json
import shutil
from pathlib import Path

import fsspec
import gguf
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from cpt_jax.embed.load import load_embedder
from cpt_jax.exporting.adapter import export_adapter
from cpt_jax.exporting.directory import export
from cpt_jax.origin.frozen_base import describe_base, open_checked_base
from cpt_jax.origin.pretrained import (
    find_directory,
    is_pretrained,
    list_model_directories,
    open_pretrained,
)
from cpt_jax.origin.resolve import resolve_model, resolve_origin
from cpt_jax.origin.weights_fingerprint import fingerprint_weights
from cpt_jax.runs.config_file import load_config
from cpt_jax.runtime.errors import UserError
from cpt_jax.training import loop
from tests.model.formats.gguf_inputs import convert_to_gguf, describe_byte_level
from tests.programs import ROOT
from tests.training.conftest import write_config

LLAMA = ROOT / 'tests' / 'fixtures' / 'old_runs' / 'llama_model'
TEXTS = ['Low light crosses more air.', 'Bees remember landmarks.', '']
pytestmark = pytest.mark.usefixtures('persistent_compilation_cache')


def convert_llama(path: Path, **changes) -> Path:
    """Writes the LLaMA of the old runs as a GGUF file."""
    content = json.loads((LLAMA / 'tokenizer.json').read_text('utf-8'))
    tokenizer = describe_byte_level(content) | {'bos_token_id': 0, 'eos_token_id': 1}
    return convert_to_gguf(LLAMA, path, tokenizer=tokenizer, **changes)


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> Path:
    return convert_llama(tmp_path_factory.mktemp('gguf') / 'llama.gguf')


def test_vectors_are_those_of_the_directory(model, tmp_path):
    assert is_pretrained(str(model)) and not is_pretrained(str(model.parent))
    found = load_embedder(str(model))
    expected = load_embedder(str(LLAMA))
    assert found.model_name == 'llama.gguf'
    np.testing.assert_allclose(found(TEXTS, 'x'), expected(TEXTS, 'x'), atol=1e-6)
    assert open_pretrained(str(model), 'mean').shape['pooling'] == 'mean'
    narrow = load_embedder(
        str(convert_llama(tmp_path / 'narrow.gguf', kind=gguf.GGMLQuantizationType.BF16))
    )
    assert {str(array.dtype) for array in jax.tree.leaves(narrow.encoder)} == {
        'bfloat16',
        'float32',  # norms
    }


def test_pooling_and_attention_are_those_of_the_file(tmp_path):
    """The numbers of poolings are those of llama.cpp."""

    def read_shape(**metadata) -> tuple[str, bool]:
        given = {f'llama.{key.replace("__", ".")}': value for key, value in metadata.items()}
        shape = open_pretrained(str(convert_llama(tmp_path / 'a.gguf', metadata=given))).shape
        return shape['pooling'], shape.get('causal', True)

    number = gguf.PoolingType
    assert read_shape(attention__causal=True) == ('eos', True)
    assert read_shape(pooling_type=int(number.NONE), attention__causal=False) == ('eos', False)
    assert read_shape(pooling_type=int(number.MEAN), attention__causal=False) == ('mean', False)
    assert read_shape(pooling_type=int(number.CLS)) == ('first', True)
    assert read_shape(pooling_type=int(number.LAST)) == ('eos', True)
    with pytest.raises(UserError, match=r'llama\.pooling_type=4 is not supported; supported are 0'):
        read_shape(pooling_type=int(number.RANK))
    with pytest.raises(UserError, match=r'llama\.attention\.causal'):
        read_shape(attention__causal=1)


def test_file_is_identified_by_its_content(model, tmp_path):
    base = describe_base(resolve_origin(str(model)))
    assert base.path == str(model)
    assert open_checked_base(base, 'run').directory == model
    other = convert_llama(tmp_path / 'other.gguf', metadata={'general.alignment': 64})
    assert list_model_directories(str(other)) == [other]
    assert fingerprint_weights(model) != fingerprint_weights(other)
    shutil.copy(model, tmp_path / 'copy.gguf')
    assert fingerprint_weights(model) == fingerprint_weights(tmp_path / 'copy.gguf')
    with pytest.raises(UserError, match='to use a GGUF file in it, name the file: .*copy.gguf'):
        resolve_model(str(tmp_path), '--model')


def test_file_in_a_bucket_is_copied(model, tmp_path, monkeypatch):
    monkeypatch.setenv('CPT_JAX_CACHE', str(tmp_path / 'cache'))
    store = fsspec.filesystem('memory')
    find_directory.cache_clear()
    try:
        store.put(str(model), '/gguf/llama.gguf')
        found = resolve_model('memory://gguf/llama.gguf', '--model')
        assert found.reference == 'memory://gguf/llama.gguf'
        assert found.directory.read_bytes() == model.read_bytes()
        assert found.directory.name == 'llama.gguf'
    finally:
        find_directory.cache_clear()
        store.store.clear()
        store.pseudo_dirs[:] = ['']


def test_adapters_of_a_file_are_exported_as_a_merged_model(model, tmp_path, monkeypatch):
    """The learning rate is 0, so the export has the weights of the file."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, 'devices', lambda: devices)  # compiles faster
    config = load_config(write_config(tmp_path))
    config['init_from'] = str(model)
    config['lora']['rank'] = 2
    config['optimizer'] |= {'peak_lr': 0.0, 'warmup_steps': 0}
    config['train'] |= {'steps': 1, 'batch_pairs': 4}
    config['evaluation']['every_steps'] = 0
    assert loop.train(config, tmp_path / 'run') == 0
    with pytest.raises(UserError, match='is a GGUF file, which PEFT cannot load'):
        export_adapter(str(tmp_path / 'run'), tmp_path / 'adapter')
    export(
        str(tmp_path / 'run'),
        tmp_path / 'export',
        dtype='float32',
        shard_bytes=1 << 30,
        license_id='mit',
    )
    expected = load_file(LLAMA / 'model.safetensors')
    for path in sorted((tmp_path / 'export').rglob('model.safetensors')):
        found = load_file(path)
        assert {name.removeprefix('model.') for name in expected} == found.keys()
        for name, tensor in expected.items():
            array = found[name.removeprefix('model.')]
            np.testing.assert_allclose(array[: len(tensor)], tensor, atol=1e-6)
        assert open_pretrained(str(path.parent)).config['model_type'] == 'llama'
