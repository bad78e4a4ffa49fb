"""Dense modules between pooling and normalization, compared with sentence-transformers."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cpt_jax.embed.load import load_embedder
from cpt_jax.origin.pretrained import open_pretrained
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import make_mesh
from tests.goldens.golden import read_golden, restore
from tests.model.formats.torch_inputs import write_torch_file
from tests.origin.test_pretrained import TEXTS, edit


@pytest.fixture(scope='module')
def gemma(tmp_path_factory) -> Path:
    """A model like EmbeddingGemma: two Dense modules without biases and activations."""
    captured = read_golden('pretrained').facts['whole']['gemma3 dense']
    return restore(captured, tmp_path_factory.mktemp('gemma'))


@pytest.fixture(scope='module')
def bert(tmp_path_factory) -> Path:
    """A model with one Dense module, with a bias and the default activation, Tanh."""
    captured = read_golden('pretrained').facts['whole']['bert dense']
    return restore(captured, tmp_path_factory.mktemp('bert'))


@pytest.mark.parametrize(('kind', 'width'), [('gemma', 20), ('bert', 7)])
def test_vectors_match_sentence_transformers(kind, width, request):
    embed = load_embedder(str(request.getfixturevalue(kind)))
    name = {'gemma': 'gemma3 dense', 'bert': 'bert dense'}[kind]
    ours = embed(TEXTS, 'y')
    assert ours.shape == (len(TEXTS), width) and embed.width == width
    assert embed([], 'y').shape == (0, width)
    np.testing.assert_allclose(ours, read_golden('pretrained').arrays[f'{name}/y'], atol=1e-5)
    np.testing.assert_allclose(embed(TEXTS[3:4], 'y'), ours[3:4], atol=1e-5)
    assert np.ptp(ours, axis=0).max() > 0.1


def test_settings_list_dense_modules(gemma, bert):
    assert load_embedder(str(gemma)).settings['dense'] == [[24, 36], [36, 20]]
    assert load_embedder(str(bert)).settings['dense'] == [[24, 7]]


def test_weights_may_be_a_torch_file(gemma, tmp_path):
    shutil.copytree(gemma, tmp_path / 'copy')
    weights = tmp_path / 'copy' / '2_Dense' / 'model.safetensors'
    write_torch_file(weights.with_name('pytorch_model.bin'), load_file(weights))
    weights.unlink()
    mesh = make_mesh(devices=jax.devices()[:1])
    expected = open_pretrained(str(gemma)).load_dense(mesh)[0]
    found = open_pretrained(str(tmp_path / 'copy')).load_dense(mesh)[0]
    np.testing.assert_array_equal(found.dense_weight[...], expected.dense_weight[...])


def rewrite(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


MISTAKES = {
    'activation': (
        lambda folder: edit(
            folder / '2_Dense/config.json',
            lambda config: config.update(activation_function='torch.nn.GELU'),
        ),
        r"2_Dense/config\.json: activation_function='torch.nn.GELU' is not supported",
    ),
    'residual': (
        lambda folder: edit(
            folder / '2_Dense/config.json', lambda config: config.update(use_residual=True)
        ),
        r'2_Dense/config\.json: use_residual=True is not supported',
    ),
    'width': (
        lambda folder: edit(
            folder / '3_Dense/config.json', lambda config: config.update(in_features=24)
        ),
        r'3_Dense/config\.json: in_features=24 is not supported; it must be 36',
    ),
    'no width': (
        lambda folder: edit(
            folder / '3_Dense/config.json', lambda config: config.pop('out_features')
        ),
        r"3_Dense/config\.json: has no key 'out_features'",
    ),
    'bias': (
        lambda folder: edit(
            folder / '3_Dense/config.json', lambda config: config.update(bias=True)
        ),
        r'3_Dense: has the tensors linear\.weight, but config\.json describes linear\.weight, '
        r'linear\.bias',
    ),
    'weight': (
        lambda folder: rewrite(
            folder / '2_Dense/model.safetensors',
            lambda t: t.update({'linear.weight': np.zeros((24, 36), np.float32)}),
        ),
        r'2_Dense/model\.safetensors: linear\.weight has shape \[24, 36\], but config\.json '
        r'describes \[36, 24\]',
    ),
    'no weights': (
        lambda folder: (folder / '2_Dense/model.safetensors').unlink(),
        r'2_Dense: has neither model\.safetensors nor',
    ),
    'no config': (
        lambda folder: (folder / '2_Dense/config.json').unlink(),
        r'2_Dense/config\.json: is missing',
    ),
    'order': (
        lambda folder: edit(
            folder / 'modules.json', lambda modules: modules.insert(2, modules.pop())
        ),
        r'modules\.json: expected .*, not Transformer, Pooling, Normalize, Dense, Dense; '
        r'Dense modules may come before the normalisation',
    ),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_unusable_module_is_rejected_with_its_file(gemma, tmp_path, mistake):
    change, line = MISTAKES[mistake]
    shutil.copytree(gemma, tmp_path / 'copy')
    change(tmp_path / 'copy')
    assert json.loads((gemma / 'modules.json').read_text())[2]['path'] == '2_Dense'
    with pytest.raises(UserError, match=line):
        load_embedder(str(tmp_path / 'copy'))
