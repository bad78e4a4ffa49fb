"""Tensors that files store by other names than the family, and tensors that no vector needs."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.known import find_family
from cpt_jax.model.families.load import TensorNames
from cpt_jax.model.families.stored_names import find_table_name, rename_tensors
from cpt_jax.model.families.tensors import join_mappings
from cpt_jax.model.formats.safetensors_files import TensorFiles
from cpt_jax.runtime.errors import UserError
from tests.goldens.golden import restore
from tests.model.family_inputs import VOCABULARY
from tests.model.test_families import ALONE, CONFIGS, FACTS, copy_with_change


@pytest.fixture
def directories(tmp_path) -> Callable[[str], Path]:
    """Returns a function that makes the directory of a case."""
    return lambda case: restore(FACTS['cases'][case], tmp_path / 'golden')


def test_heads_and_buffers_of_any_family_are_passed_over(directories, tmp_path):
    names = ['score.weight', 'classifier.out_proj.bias', 'pre_classifier.weight']
    names += ['qa_outputs.weight', 'rotary_emb.inv_freq', 'layers.0.self_attn.rotary_emb.inv_freq']
    extra = {name: np.zeros(1, np.float32) for name in names}
    folder = copy_with_change(directories('llama'), tmp_path, lambda found: found.update(extra))
    config = json.loads((folder / 'config.json').read_text())
    family = find_family(config)
    encoder_config = EncoderConfig(vocab_size=VOCABULARY, **family.shape(config))
    names_in_files = TensorNames(family, TensorFiles(folder), encoder_config)
    assert names_in_files.passed_over == sorted(names)


@pytest.mark.parametrize('prefix', ['', 'prefix'])
@pytest.mark.parametrize('case', ALONE)
def test_tied_table_is_found_under_the_name_of_the_head(directories, tmp_path, case, prefix):
    """safetensors.torch.save_model keeps the first of two names in the alphabet."""
    config = CONFIGS[case]
    family = find_family(config)
    prefix = family.prefixes[-1] if prefix else ''
    encoder_config = EncoderConfig(vocab_size=VOCABULARY, **family.shape(config))
    table = find_table_name(family, encoder_config)
    stored = load_file(directories(case) / 'model.safetensors')
    renamed = {prefix + name: array for name, array in stored.items() if name != table}
    save_file(renamed | {family.head: stored[table]}, tmp_path / 'model.safetensors')
    files = TensorFiles(tmp_path)
    tied = rename_tensors(files, family, encoder_config, is_tied=True)
    np.testing.assert_array_equal(tied.read(prefix + table), stored[table])
    assert tied.describe_location(prefix + table).endswith(family.head)
    TensorNames(family, tied, encoder_config)
    with pytest.raises(UserError, match=f'missing 1: {table}'):
        TensorNames(family, rename_tensors(files, family, encoder_config, False), encoder_config)


def test_norms_of_tensorflow_checkpoints_have_their_names(directories, tmp_path):
    """google-bert/bert-base-uncased has LayerNorm.gamma and LayerNorm.beta, in its heads too."""
    stored = load_file(directories('bert') / 'model.safetensors')
    old = {'LayerNorm.weight': 'LayerNorm.gamma', 'LayerNorm.bias': 'LayerNorm.beta'}
    renamed = {}
    for name, array in stored.items():
        for new_suffix, suffix in old.items():
            name = name.replace(new_suffix, suffix)
        renamed[f'bert.{name}'] = array
    renamed['cls.predictions.transform.LayerNorm.gamma'] = np.zeros(1, np.float32)
    save_file(renamed, tmp_path / 'model.safetensors')
    config = CONFIGS['bert']
    family = find_family(config)
    encoder_config = EncoderConfig(vocab_size=VOCABULARY, **family.shape(config))
    files = rename_tensors(TensorFiles(tmp_path), family, encoder_config, is_tied=True)
    TensorNames(family, files, encoder_config)
    name = 'embeddings.LayerNorm.weight'
    np.testing.assert_array_equal(files.read(f'bert.{name}'), stored[name])


JOINED = {
    'nomic_bert': 'encoder.layers.1.attn.Wqkv.weight',
    'gte': 'encoder.layer.1.mlp.up_gate_proj.weight',
}


@pytest.mark.parametrize('case', JOINED)
def test_names_of_transformers_modules_are_read_too(directories, tmp_path, case):
    """`save_pretrained(save_original_format=False)` writes them."""
    config = CONFIGS[case]
    family = find_family(config)
    encoder_config = EncoderConfig(vocab_size=VOCABULARY, **family.shape(config))
    folder = directories(case)
    published = rename_tensors(TensorFiles(folder), family, encoder_config, is_tied=False)
    tensors = {name: published.read(name) for name in published.names}
    assert all(list(array.shape) == published.read_shape(name) for name, array in tensors.items())
    assert not tensors.keys() & {stored.name.format(i=1) for stored in family.stored}
    save_file(tensors, tmp_path / 'model.safetensors')
    files = rename_tensors(TensorFiles(tmp_path), family, encoder_config, is_tied=False)
    TensorNames(family, files, encoder_config)
    for name, array in tensors.items():
        np.testing.assert_array_equal(files.read(name), array)
    stored = load_file(folder / 'model.safetensors')[JOINED[case]]
    parts = next(parts for name, parts in family.stored if name.format(i=1) == JOINED[case])
    np.testing.assert_array_equal(
        np.concatenate([tensors[part.format(i=1)] for part in parts]), stored
    )


def test_joined_mapping_only_writes():
    config = CONFIGS['gte']
    family = find_family(config)
    encoder_config = EncoderConfig(vocab_size=VOCABULARY, **family.shape(config))
    joined = join_mappings(family.layer(encoder_config), family.stored)
    (tensor,) = (tensor for tensor in joined if tensor.name.endswith('up_gate_proj.weight'))
    with pytest.raises(NotImplementedError, match=r'up_gate_proj\.weight is read as 2 tensors'):
        tensor.read(np.zeros((80, 24), np.float32))


def test_joined_tensor_of_another_size_or_stored_twice_is_an_error(directories, tmp_path):
    config = CONFIGS['gte']
    family = find_family(config)
    encoder_config = EncoderConfig(vocab_size=VOCABULARY, **family.shape(config))
    name, part = JOINED['gte'], 'layers.1.mlp.gate_proj.weight'

    def open_changed(folder: Path, **extra: np.ndarray) -> TensorFiles:
        folder.mkdir()
        changed = copy_with_change(
            directories('gte'), folder, lambda tensors: tensors.update(extra)
        )
        return rename_tensors(TensorFiles(changed), family, encoder_config, is_tied=False)

    files = open_changed(tmp_path / 'odd', **{name: np.zeros((81, 24), np.float32)})
    line = r'up_gate_proj\.weight has shape \[81, 24\], which is not 2 tensors of equal size'
    with pytest.raises(UserError, match=line):
        files.read(part)
    line = rf'{part} is also in {name}: save the model again'
    with pytest.raises(UserError, match=line):
        open_changed(tmp_path / 'twice', **{part: np.zeros((40, 24), np.float32)})
