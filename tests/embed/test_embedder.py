"""Embedder and load_embedder: texts to vectors, on any number of devices."""

import dataclasses
import functools
import threading
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cpt_jax.embed import row_batching
from cpt_jax.embed.embedder import Embedder
from cpt_jax.embed.load import load_embedder, read_settings
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.runs.checkpoint import Checkpoints
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import AXES, assign_mesh_shardings, get_batch_sharding, make_mesh
from cpt_jax.text.prompt_template import Prompt, Representation
from cpt_jax.text.prompt_tokenizer import PromptTokenizer
from cpt_jax.text.tokenizer import Tokenizer
from tests.conftest import sentences

MODEL = {'width': 32, 'layers': 1, 'heads': 2, 'max_length': 40, 'causal': False, 'remat': 'none'}
LIMITS = {'x': 24, 'y': 40}
TEXTS = [
    *sentences(94, words=30),
    '',
    ' ',
    'list ' * 1000,
    '[ ] { }',
    'Ünïcödé \U0001f389',
    'x' * 5000,
]


def make_encoder(vocab_size: int, mesh: jax.sharding.Mesh, seed: int = 0, **choices) -> Encoder:
    """Returns an encoder with random parameters, large enough that vectors of texts differ."""
    config = EncoderConfig(vocab_size=vocab_size, **MODEL | choices).resolve_auto('cpu')
    with jax.set_mesh(mesh):
        abstract = assign_mesh_shardings(jax.eval_shape(lambda: Encoder(config, nnx.Rngs(0))), mesh)
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda w: jax.device_put(random.normal(0, 0.3, w.shape).astype(np.float32), w.sharding),
        abstract,
    )


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Makes a hundred texts fill several windows of several batches."""
    monkeypatch.setattr(row_batching, 'COLUMNS_PER_DEVICE', {'cpu': 128})
    monkeypatch.setattr(Embedder, 'WINDOW', 5)


@pytest.fixture(scope='module')
def embedders(tokenizer):
    """Returns a cached function: mesh sizes -> embedder of the same model on that mesh."""

    @functools.cache
    def make(sizes: tuple[int, int, int]) -> Embedder:
        devices = jax.devices()[: np.prod(sizes)]
        mesh = jax.make_mesh(sizes, AXES, (jax.sharding.AxisType.Explicit,) * 3, devices=devices)
        return Embedder(make_encoder(tokenizer.vocab_size, mesh), tokenizer, mesh, LIMITS)

    return make


def test_vectors_do_not_depend_on_the_other_texts_of_a_call(embedders, monkeypatch):
    embed = embedders((8, 1, 1))
    start_batch = embed._dispatch_batch
    programs = set()

    def record(tokens, rows: int, row_length: int, *rest):
        programs.add((rows, row_length))
        return start_batch(tokens, rows, row_length, *rest)

    monkeypatch.setattr(embed, '_dispatch_batch', record)
    for side in ('x', 'y'):
        whole = embed(TEXTS, side)
        assert whole.shape == (100, 32)
        assert whole.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-6)
        for count in (0, 1, 7):
            some = embed(TEXTS[:count], side)
            assert some.shape == (count, 32)
            assert some.dtype == np.float32
            np.testing.assert_allclose(some, whole[:count], atol=1e-6)
        for i in (5, 40, *range(94, 100)):
            np.testing.assert_allclose(embed([TEXTS[i]], side)[0], whole[i], atol=1e-6)
        np.testing.assert_allclose(embed(TEXTS[::-1], side), whole[::-1], atol=1e-6)
    # The delimiters change the vectors.
    assert np.abs(embed(TEXTS, 'x') - embed(TEXTS, 'y')).max(1).min() > 1e-3
    # Row lengths 8, 16, 24, 32 and 40, and fewer rows for the last texts of a window.
    assert 5 < len(programs) <= 9


@jax.jit
def encode_one_text(encoder: Encoder, ids_1xL: jax.Array) -> jax.Array:
    """Returns float32[1, 1, D]: the vector of one text in a row without padding."""
    length = ids_1xL.shape[1]
    return encoder(
        ids_1xL,
        jnp.ones_like(ids_1xL),
        0 * ids_1xL + jnp.arange(length)[None],
        # A sum keeps the sharding of the rows; JAX 0.12 takes it from a slice of one element.
        0 * ids_1xL.sum(1, keepdims=True) + length - 1,
    )


@pytest.mark.parametrize('positions', ['learned', 'rotary'])
@pytest.mark.parametrize('causal', [True, False])
def test_vectors_equal_those_of_rows_without_padding(tokenizer, monkeypatch, causal, positions):
    # All texts are in one batch.
    monkeypatch.setattr(row_batching, 'COLUMNS_PER_DEVICE', {'cpu': 256})
    monkeypatch.setattr(Embedder, 'WINDOW', 8)
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    encoder = make_encoder(tokenizer.vocab_size, mesh, layers=2, causal=causal, positions=positions)
    texts = [*TEXTS[:4], 'list ' * 7, '']
    vectors_NxD = Embedder(encoder, tokenizer, mesh, LIMITS)(texts, 'y')
    for i in (4, 5):
        ids_1xL = np.array(tokenizer.encode(texts[i : i + 1], 'y', LIMITS['y']))
        with jax.set_mesh(mesh):
            expected_1x1xD = encode_one_text(
                encoder, jax.device_put(ids_1xL, get_batch_sharding(mesh))
            )
        np.testing.assert_allclose(vectors_NxD[i], expected_1x1xD[0, 0], atol=1e-5)


def test_max_tokens_above_the_maximum_length_is_refused(embedders, tokenizer):
    embed = embedders((8, 1, 1))
    with pytest.raises(UserError, match='max_tokens=41: the model reads 40 tokens at most'):
        Embedder(embed.encoder, tokenizer, make_mesh(), {'x': 24, 'y': 41})


@pytest.mark.parametrize('parts', [1, 8])
def test_batches_contain_each_text_once_with_little_padding(embedders, monkeypatch, parts):
    monkeypatch.setattr(row_batching, 'COLUMNS_PER_DEVICE', {'cpu': 1024})
    embed = embedders((parts, 1, 1))
    monkeypatch.setattr(
        embed,
        'encoder',
        SimpleNamespace(config=dataclasses.replace(embed.encoder.config, max_length=500)),
    )
    lengths_N = np.random.default_rng(0).integers(2, 501, 4000)
    batches = list(embed._split_into_batches(lengths_N))
    assert sorted(np.concatenate([indices for indices, _, _ in batches])) == list(range(4000))
    for indices, rows, row_length in batches:
        assert len(indices) <= rows
        assert rows % parts == 0
        assert rows // parts * row_length <= 1024
        assert lengths_N[indices].max() <= row_length <= 500
        assert row_length % 8 == 0 or row_length == 500
    assert lengths_N.sum() / sum(rows * row_length for _, rows, row_length in batches) > 0.95
    assert len({(rows, row_length) for _, rows, row_length in batches}) <= 36
    ((_, rows, _),) = embed._split_into_batches(np.array([9]))
    assert rows == parts  # a single query is not computed as a full batch


def test_shared_prefix_is_computed_once_and_changes_no_vector(tokenizer, monkeypatch):
    monkeypatch.setattr(Embedder, 'WINDOW', 40)
    monkeypatch.setattr(Embedder, 'MAX_SUFFIX', 24)  # longer texts are computed whole
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    encoder = make_encoder(tokenizer.vocab_size, mesh, causal=True, max_length=120)
    prompt = Prompt(
        '{text} means', demonstrations=(('list file parser return value', 'table'),) * 4, clean=True
    )
    embed = Embedder(encoder, PromptTokenizer(tokenizer, prompt, [1]), mesh, {'x': 100, 'y': 100})
    texts = [*sentences(50, words=9), '', 'list ' * 500]
    whole = embed.with_prompt(prompt, share=False)
    expected = whole(texts, 'x')
    found = embed(texts, 'x')
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(embed(texts[:1], 'x'), expected[:1], atol=1e-5)
    assert embed.columns < 0.7 * whole.columns
    assert np.abs(expected[1:] - expected[:-1]).max(1).min() > 1e-3
    # Training replaces the encoder from step to step; the prefix is then computed again.
    embed.encoder = make_encoder(tokenizer.vocab_size, mesh, 1, causal=True, max_length=120)
    assert np.abs(embed(texts[:3], 'x') - found[:3]).max() > 0.1
    plain = embed.with_prompt(dataclasses.replace(prompt, demonstrations=()))
    assert plain.prompt.demonstrations == ()
    assert plain.settings['demonstrations'] == []
    assert plain.settings.keys() == embed.settings.keys()
    assert plain.settings['tokenizer'] != embed.settings['tokenizer']
    too_long = dataclasses.replace(prompt, demonstrations=prompt.demonstrations * 9)
    with pytest.raises(
        UserError, match='takes .* tokens, and the model reads 100: shorten it'
    ) as error:
        embed.with_prompt(too_long)
    assert len(str(error.value)) < 300
    with pytest.raises(UserError, match='--model: its texts have no template'):
        Embedder(encoder, tokenizer, mesh, LIMITS).with_prompt(prompt)


def test_stream_equals_a_call_and_reads_only_a_few_windows_ahead(embedders):
    embed = embedders((1, 1, 1))
    read = 0

    def texts():
        nonlocal read
        for text in TEXTS * 2:
            read += 1
            yield text

    expected = embed(TEXTS * 2, 'y')
    taken = 0
    for vectors_NxD in embed.stream(texts(), 'y'):
        np.testing.assert_array_equal(vectors_NxD, expected[taken : taken + 5])
        taken += len(vectors_NxD)
        # Two windows being tokenized, and one for each batch in flight.
        assert read <= taken + 5 * (2 + Embedder.BATCHES_IN_FLIGHT)
    assert taken == read == 200


def test_error_while_reading_texts_is_raised(embedders):
    def texts():
        yield from TEXTS[:20]
        raise UserError('texts.txt:21: no good')

    with pytest.raises(UserError, match='texts.txt:21: no good'):
        list(embedders((1, 1, 1)).stream(texts(), 'y'))


def test_between_is_called_after_each_batch_and_may_raise(embedders):
    embed = embedders((1, 1, 1))
    calls = 0

    def between():
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyError('enough')

    with pytest.raises(KeyError, match='enough'):
        embed(TEXTS, 'y', between=between)
    assert calls == 7
    counts = []
    embed(TEXTS, 'y', between=lambda: counts.append(1))
    lengths = [len(ids) for ids in embed._tokenizer.encode(TEXTS, 'y', LIMITS['y'])]
    windows = [np.array(lengths[start : start + 5]) for start in range(0, 100, 5)]
    assert len(counts) == sum(len(list(embed._split_into_batches(window))) for window in windows)
    assert not [thread for thread in threading.enumerate() if 'ThreadPool' in thread.name]


def test_next_batches_are_started_before_one_is_read(embedders, monkeypatch):
    embed = embedders((1, 1, 1))
    order = []
    start_batch = embed._dispatch_batch

    def record(*arguments):
        order.append('start')
        return start_batch(*arguments)

    monkeypatch.setattr(embed, '_dispatch_batch', record)
    embed(TEXTS, 'y', between=lambda: order.append('read'))
    ahead = Embedder.BATCHES_IN_FLIGHT + 1
    assert order[: ahead + 2] == ['start'] * ahead + ['read', 'start']
    assert order[-ahead:] == ['read'] * ahead


@pytest.mark.parametrize('sizes', [(1, 1, 1), (2, 2, 2)])
def test_mesh_does_not_change_vectors(embedders, sizes):
    texts = sentences(60, seed=1)  # all have one row length
    np.testing.assert_allclose(
        embedders(sizes)(texts, 'y'), embedders((8, 1, 1))(texts, 'y'), atol=2e-6
    )


def test_long_text_has_the_vector_of_its_beginning(embedders, tokenizer):
    embed = embedders((8, 1, 1))
    assert tokenizer.count(['list ' * 22, 'list ' * 38]) == [22, 38]
    for side, words in [('x', 22), ('y', 38)]:
        long, exact, shorter = embed(
            ['list ' * 1000, 'list' + ' list' * (words - 1), 'list' + ' list' * (words - 2)], side
        )
        np.testing.assert_allclose(long, exact, atol=1e-6)
        assert np.abs(long - shorter).max() > 1e-4


def test_settings_describe_what_vectors_depend_on(embedders, tokenizer):
    embed = embedders((8, 1, 1))
    assert embed.settings['max_tokens_x'] == 24
    assert embed.settings['max_tokens_y'] == 40
    assert embed.settings['dtype'] == 'float32'
    assert embed.settings['tokenizer'] == tokenizer.fingerprint
    assert embed.model_name == ''
    assert embed.workdir is None
    assert not embed.folds_case


def test_no_output_is_printed_by_default(embedders, capsys):
    embed = embedders((8, 1, 1))
    embed(TEXTS[:3], 'x')
    assert capsys.readouterr() == ('', '')


def write_run(
    directory: Path,
    tokenizer: Tokenizer,
    pretrained: dict | None = None,
    template: str = '',
    **choices,
) -> Path:
    """Writes a run's directory without training; returns its path.

    It has checkpoints at steps 100 and 200, with the parameters of seeds 1 and 2 and a dummy
    optimizer state.
    """
    config = {
        'model': MODEL | choices,
        'data': {
            'max_tokens_x': 24,
            'max_tokens_y': 40,
            'sources': {'a': {'kind': 'text', 'weight': 1.0}},
        },
        'tokenizer': {'closing': tokenizer.closing},
        'prompt': {'template': template},
        'train': {'batch_pairs': 64},
        'init_from': '',
    }
    about = {
        'config': config,
        'code': 'c0de',
        'pretrained': pretrained,
        'begin': [1] if template else None,
    }
    saved = Checkpoints(
        directory / 'checkpoints', tokenizer.file, about, every_steps=1, keep_latest=9, keep_every=0
    )
    for seed in (1, 2):
        encoder = make_encoder(tokenizer.vocab_size, make_mesh(2, 2, 2), seed, **choices)
        saved.save(
            seed * 100,
            {
                'params': {'encoder': encoder, 'log_scale': np.zeros(())},
                'optimizer': {'m': np.zeros(3)},
            },
        )
    saved.close()
    return directory


@pytest.fixture(scope='module')
def run(tmp_path_factory, tokenizer) -> Path:
    return write_run(tmp_path_factory.mktemp('runs') / 'run', tokenizer)


def test_run_is_loaded_by_its_directory_and_step(run, tokenizer, monkeypatch):
    monkeypatch.chdir(run.parent)
    mesh = make_mesh(8, 1, 1)
    latest = load_embedder('run')
    first = load_embedder('run@100')
    assert (latest.model_name, latest.settings['step'], latest.workdir) == ('run@200', 200, run)
    assert (first.model_name, first.settings['step']) == ('run@100', 100)
    assert first.settings['saved'] < latest.settings['saved']
    for loaded, seed in [(latest, 2), (first, 1)]:
        expected = Embedder(make_encoder(tokenizer.vocab_size, mesh, seed), tokenizer, mesh, LIMITS)
        for a, b in zip(
            jax.tree.leaves(loaded.encoder), jax.tree.leaves(expected.encoder), strict=True
        ):
            np.testing.assert_array_equal(a, b)
        origin = {'code': 'c0de', 'trained_on': {'a': {'kind': 'text', 'weight': 1.0}}} | {
            key: loaded.settings[key] for key in ('step', 'saved')
        }
        assert loaded.settings == expected.settings | origin
        assert loaded.encoder.config == expected.encoder.config
    np.testing.assert_allclose(np.linalg.norm(latest(['list', 'file'], 'x'), axis=1), 1, atol=1e-6)
    assert load_embedder(str(run)).model_name == 'run@200'  # for any form of the path
    assert read_settings('run@200') == latest.settings
    assert read_settings('run@100') == first.settings


def test_the_first_dimensions_are_normalized_again(run):
    whole_NxD = load_embedder(str(run))(['list', 'file'], 'x')
    embed = load_embedder(str(run), dimensions=8)
    first_NxD = whole_NxD[:, :8] / np.linalg.norm(whole_NxD[:, :8], axis=1, keepdims=True)
    assert embed.width == 8
    np.testing.assert_allclose(embed(['list', 'file'], 'x'), first_NxD, atol=1e-6)
    assert embed.settings == read_settings(str(run), dimensions=8)
    assert embed.settings['dimensions'] == 8
    with pytest.raises(UserError, match='--dimensions 33: must be from 1 to 32, the dimensions'):
        load_embedder(str(run), dimensions=33)


@pytest.mark.parametrize(
    ('reference', 'expected'),
    [
        ('nowhere', '--model nowhere: no run with a checkpoint'),
        ('run@150', '--model run@150: no such checkpoint; there are 100, 200'),
    ],
)
def test_missing_run_gives_an_error(run, monkeypatch, reference, expected):
    monkeypatch.chdir(run.parent)
    with pytest.raises(UserError, match=expected):
        load_embedder(reference)
    with pytest.raises(UserError, match='--fsdp 3: the number of devices, 8, is not a multiple'):
        load_embedder(reference, fsdp=3)


def test_run_with_delimiters_has_no_other_representation(run):
    shown = (('A man is smoking.', 'Smoking'),)
    for representation, flag in [
        (Representation('prompteol'), '--representation'),
        (Representation(demonstrations=shown), '--demonstration'),
    ]:
        with pytest.raises(UserError, match=f'{flag}: .*run was trained without a template'):
            load_embedder(str(run), representation=representation)
