"""Dense modules between pooling and normalisation: the vectors of sentence-transformers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cpt_jax.embed import load_embedder
from cpt_jax.errors import UserError
from tests.test_pretrained import TEXTS, edit, make, sentence_transformers, torch


def dense(inner: int, outer: int, **more):
    """One whose weights are not small; `activation_function` is Tanh where nothing is said."""
    made = sentence_transformers.sentence_transformer.modules.Dense(inner, outer, **more)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return made


@pytest.fixture(scope='module')
def gemma(tmp_path_factory) -> Path:
    """As EmbeddingGemma: two of them, without biases and activations."""
    torch.manual_seed(1)
    plain = {'bias': False, 'activation_function': torch.nn.Identity()}
    return make(tmp_path_factory.mktemp('gemma'), 'gemma3', 'mean', [dense(24, 36, **plain), dense(36, 20, **plain)])


@pytest.fixture(scope='module')
def bert(tmp_path_factory) -> Path:
    torch.manual_seed(1)
    return make(tmp_path_factory.mktemp('bert'), 'bert', 'cls', [dense(24, 7)])


@pytest.mark.parametrize(('kind', 'width'), [('gemma', 20), ('bert', 7)])
def test_vectors_are_those_of_sentence_transformers(kind, width, request):
    folder = str(request.getfixturevalue(kind))
    embed, theirs = load_embedder(folder), sentence_transformers.SentenceTransformer(folder, device='cpu')
    ours = embed(TEXTS, 'y')
    assert ours.shape == (len(TEXTS), width) and embed.width == width and embed([], 'y').shape == (0, width)
    np.testing.assert_allclose(ours, theirs.encode(TEXTS, batch_size=7), atol=1e-5)
    np.testing.assert_allclose(embed(TEXTS[3:4], 'y'), ours[3:4], atol=1e-5)
    assert np.ptp(ours, axis=0).max() > 0.1


def test_results_tell_of_them(gemma, bert):
    assert load_embedder(str(gemma)).settings['dense'] == [[24, 36], [36, 20]]
    assert load_embedder(str(bert)).settings['dense'] == [[24, 7]]


def rewrite(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


MISTAKES = {
    'activation': (
        lambda folder: edit(folder / '2_Dense/config.json', lambda config: config.update(activation_function='torch.nn.GELU')),
        r"2_Dense/config\.json: activation_function='torch.nn.GELU' is not supported",
    ),
    'residual': (
        lambda folder: edit(folder / '2_Dense/config.json', lambda config: config.update(use_residual=True)),
        r'2_Dense/config\.json: use_residual=True is not supported',
    ),
    'width': (
        lambda folder: edit(folder / '3_Dense/config.json', lambda config: config.update(in_features=24)),
        r'3_Dense/config\.json: in_features=24 is not supported; it must be 36',
    ),
    'no width': (
        lambda folder: edit(folder / '3_Dense/config.json', lambda config: config.pop('out_features')),
        r"3_Dense/config\.json: has no 'out_features'",
    ),
    'bias': (
        lambda folder: edit(folder / '3_Dense/config.json', lambda config: config.update(bias=True)),
        r'3_Dense: holds linear\.weight, and config\.json tells of linear\.weight, linear\.bias',
    ),
    'weight': (
        lambda folder: rewrite(folder / '2_Dense/model.safetensors', lambda t: t.update({'linear.weight': np.zeros((24, 36), np.float32)})),
        r'2_Dense/model\.safetensors: linear\.weight has shape \[24, 36\], and config\.json tells of \[36, 24\]',
    ),
    'no weights': (lambda folder: (folder / '2_Dense/model.safetensors').unlink(), r'2_Dense: holds neither model\.safetensors nor'),
    'no config': (lambda folder: (folder / '2_Dense/config.json').unlink(), r'2_Dense/config\.json: is missing'),
    'order': (
        lambda folder: edit(folder / 'modules.json', lambda modules: modules.insert(2, modules.pop())),
        r'modules\.json: .* are expected, not Transformer, Pooling, Normalize, Dense, Dense; Dense modules may stand before the last',
    ),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_module_that_cannot_be_used_is_refused_by_file(gemma, tmp_path, mistake):
    change, line = MISTAKES[mistake]
    shutil.copytree(gemma, tmp_path / 'copy')
    change(tmp_path / 'copy')
    assert json.loads((gemma / 'modules.json').read_text())[2]['path'] == '2_Dense'
    with pytest.raises(UserError, match=line):
        load_embedder(str(tmp_path / 'copy'))
