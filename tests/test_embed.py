"""Texts to vectors, on all devices and in any number."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from cpt_jax.checkpoint import Checkpoints
from cpt_jax.embed import Embedder, load_embedder
from cpt_jax.errors import UserError
from cpt_jax.mesh import AXES, make_mesh, on_mesh
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.shape import Shape
from tests.conftest import sentences

MODEL = {'width': 32, 'layers': 1, 'heads': 2, 'max_length': 40, 'causal': False, 'remat': 'none'}
LIMITS = {'x': 24, 'y': 40}
TEXTS = [*sentences(94, words=30), '', ' ', 'list ' * 1000, '[ ] { }', 'Ünïcödé \U0001f389', 'x' * 5000]


def make_encoder(vocab_size: int, mesh: jax.sharding.Mesh, seed: int = 0) -> Encoder:
    """Random parameters, large enough for texts to differ."""
    shape = Shape(vocab_size=vocab_size, **MODEL).on('cpu')
    with jax.set_mesh(mesh):
        abstract = on_mesh(jax.eval_shape(lambda: Encoder(shape, nnx.Rngs(0))), mesh)
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda w: jax.device_put(random.normal(0, 0.3, w.shape).astype(np.float32), w.sharding), abstract)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """So that a hundred texts are several batches."""
    monkeypatch.setattr(Embedder, 'TOKENS', 128)


@pytest.fixture(scope='module')
def embedders(tokenizer):
    """The same model on some devices, made once."""

    @functools.cache
    def make(sizes: tuple[int, int, int]) -> Embedder:
        devices = jax.devices()[: np.prod(sizes)]
        mesh = jax.make_mesh(sizes, AXES, (jax.sharding.AxisType.Explicit,) * 3, devices=devices)
        return Embedder(make_encoder(tokenizer.vocab_size, mesh), tokenizer, mesh, LIMITS)

    return make


def test_any_number_of_texts_are_those_texts_one_at_a_time(embedders):
    embed = embedders((8, 1, 1))
    for side in ('x', 'y'):
        whole = embed(TEXTS, side)
        assert whole.shape == (100, 32) and whole.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-6)
        for count in (0, 1, 7):
            some = embed(TEXTS[:count], side)
            assert some.shape == (count, 32) and some.dtype == np.float32
            np.testing.assert_allclose(some, whole[:count], atol=1e-6)
        for place in (5, 40, *range(94, 100)):
            np.testing.assert_allclose(embed([TEXTS[place]], side)[0], whole[place], atol=1e-6)
        np.testing.assert_allclose(embed(TEXTS[::-1], side), whole[::-1], atol=1e-6)
    assert np.abs(embed(TEXTS, 'x') - embed(TEXTS, 'y')).max(1).min() > 1e-3  # the delimiters are seen
    # Row lengths 16, 32 and 40: a program each.
    assert embed._encode._cache_size() == 3


@pytest.mark.parametrize('sizes', [(1, 1, 1), (2, 2, 2)])
def test_devices_do_not_matter(embedders, sizes):
    texts = sentences(60, seed=1)  # of one row length
    np.testing.assert_allclose(embedders(sizes)(texts, 'y'), embedders((8, 1, 1))(texts, 'y'), atol=2e-6)


def test_a_long_text_is_its_beginning(embedders, tokenizer):
    embed = embedders((8, 1, 1))
    assert tokenizer.count(['list ' * 22, 'list ' * 38]) == [23, 39]  # the last one a space
    for side, words in [('x', 22), ('y', 38)]:
        long, exact, shorter = embed(['list ' * 1000, 'list' + ' list' * (words - 1), 'list' + ' list' * (words - 2)], side)
        np.testing.assert_allclose(long, exact, atol=1e-6)
        assert np.abs(long - shorter).max() > 1e-4


def test_what_vectors_depend_on_is_told(embedders, tokenizer):
    embed = embedders((8, 1, 1))
    assert embed.settings['max_tokens_x'] == 24 and embed.settings['max_tokens_y'] == 40
    assert embed.settings['dtype'] == 'float32' and embed.settings['tokenizer'] == tokenizer.fingerprint
    assert (embed.model_name, embed.workdir) == ('', None)


def test_nothing_is_printed_unless_asked_for(embedders, capsys):
    embed = embedders((8, 1, 1))
    embed(TEXTS[:3], 'x')
    assert capsys.readouterr() == ('', '')


@pytest.fixture(scope='module')
def run(tmp_path_factory, tokenizer) -> Path:
    """A run's directory with two checkpoints, written by hand: the parameters of seeds 1 and 2, and something of an optimizer's."""
    config = {'model': MODEL, 'data': {'max_tokens_x': 24, 'max_tokens_y': 40, 'sources': {'a': {'kind': 'text'}}}}
    directory = tmp_path_factory.mktemp('runs') / 'run'
    saved = Checkpoints(
        directory / 'checkpoints', tokenizer, {'config': config, 'code': 'c0de'}, every_steps=1, keep_latest=9, keep_every=0
    )
    for seed in (1, 2):
        encoder = make_encoder(tokenizer.vocab_size, make_mesh(2, 2, 2), seed)
        saved.save(seed * 100, {'params': {'encoder': encoder, 'log_scale': np.zeros(())}, 'optimizer': {'m': np.zeros(3)}})
    saved.close()
    return directory


def test_a_run_is_loaded_by_its_name_and_step(run, tokenizer, monkeypatch):
    monkeypatch.chdir(run.parent)
    mesh = make_mesh(8, 1, 1)
    latest, first = load_embedder('run'), load_embedder('run@100')
    assert (latest.model_name, latest.settings['step'], latest.workdir) == ('run@200', 200, run)
    assert (first.model_name, first.settings['step']) == ('run@100', 100) and first.settings['saved'] < latest.settings['saved']
    for loaded, seed in [(latest, 2), (first, 1)]:
        expected = Embedder(make_encoder(tokenizer.vocab_size, mesh, seed), tokenizer, mesh, LIMITS)
        for a, b in zip(jax.tree.leaves(loaded.encoder), jax.tree.leaves(expected.encoder), strict=True):
            np.testing.assert_array_equal(a, b)
        origin = {'code': 'c0de', 'trained_on': {'a': {'kind': 'text'}}} | {key: loaded.settings[key] for key in ('step', 'saved')}
        assert loaded.settings == expected.settings | origin
        assert loaded.encoder.shape == expected.encoder.shape
    np.testing.assert_allclose(np.linalg.norm(latest(['list', 'file'], 'x'), axis=1), 1, atol=1e-6)
    assert load_embedder(str(run)).model_name == 'run@200'  # however it is named


@pytest.mark.parametrize(
    ('reference', 'expected'),
    [('nowhere', '--model nowhere: no run with a checkpoint'), ('run@150', '--model run@150: no such checkpoint; there are 100, 200')],
)
def test_a_run_that_is_not_there_is_one_line(run, monkeypatch, reference, expected):
    monkeypatch.chdir(run.parent)
    with pytest.raises(UserError, match=expected):
        load_embedder(reference)
