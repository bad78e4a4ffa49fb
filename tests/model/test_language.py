"""Next-token losses match transformers (stored in a golden), for packed rows and single texts."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy
from flax import nnx

from cpt_jax.model import language
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.families.known import find_family
from cpt_jax.model.families.load import load_encoder
from cpt_jax.model.formats.safetensors_files import TensorFiles
from cpt_jax.model.language import predict_tokens
from cpt_jax.runs.checkpoint import to_nested_dict
from cpt_jax.runs.config import flatten
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import get_batch_sharding, make_mesh
from tests.goldens.golden import read_golden, restore
from tests.model.family_inputs import VOCABULARY, language_texts

CASES = 'gpt2', 'llama', 'opt 350m'


def pack_rows(texts: list[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Packs texts in order, as many per row as fit, with padding at the end of rows.

    Returns:
      tokens_RxS, segments_RxS, positions_RxS.
    """
    rows: list[list[np.ndarray]] = [[]]
    for text in texts:
        if sum(map(len, rows[-1])) + len(text) > length:
            rows.append([])
        rows[-1].append(text)
    tokens_RxS, segments_RxS, positions_RxS = np.zeros((3, len(rows), length), np.int32)
    for row, content in enumerate(rows):
        filled = np.concatenate(content)
        tokens_RxS[row, : len(filled)] = filled
        segments_RxS[row, : len(filled)] = np.repeat(
            np.arange(len(content)) + 1, [len(text) for text in content]
        )
        positions_RxS[row, : len(filled)] = np.concatenate(
            [np.arange(len(text)) for text in content]
        )
    return tokens_RxS, segments_RxS, positions_RxS


def compute_token_losses(encoder: Encoder, tokens_RxS, segments_RxS, positions_RxS) -> jax.Array:
    return predict_tokens(encoder, tokens_RxS, segments_RxS, positions_RxS).losses_RxS


def compute_losses(encoder: Encoder, mesh: jax.sharding.Mesh, rows) -> np.ndarray:
    with jax.set_mesh(mesh):
        return np.asarray(
            jax.jit(compute_token_losses)(encoder, *jax.device_put(rows, get_batch_sharding(mesh)))
        )


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Returns a function from a case to (config, loader), which makes the case on first use."""

    @functools.cache
    def make(case: str):
        captured = read_golden('language').facts['cases'][case]
        folder = restore(captured, tmp_path_factory.mktemp('language'))
        model_config = captured['files']['config.json']
        family = find_family(model_config)
        assert model_config.get('tie_word_embeddings', family.tied)
        config = EncoderConfig(
            vocab_size=VOCABULARY, **family.shape(model_config) | {'remat': 'none'}
        ).resolve_auto('cpu')
        return config, lambda config, mesh: load_encoder(family, TensorFiles(folder), config, mesh)

    return make


@pytest.mark.parametrize('case', CASES)
def test_losses_match_transformers_packed_and_separately(models, case):
    shape, load = models(case)
    mesh = make_mesh(devices=jax.devices()[:1])
    encoder = load(shape, mesh)
    texts = language_texts()
    rows = pack_rows(texts, 23)
    found_RxS = compute_losses(encoder, mesh, rows)
    assert found_RxS.dtype == np.float32 and len(found_RxS) == 2
    assert not found_RxS[rows[1] == 0].any()
    expected = read_golden('language').arrays[case]
    np.testing.assert_allclose(found_RxS[rows[1] > 0], expected, atol=1e-4)
    each = np.split(expected, np.cumsum([len(text) for text in texts])[:-1])
    for text, right in list(zip(texts, each, strict=True))[1:4]:
        np.testing.assert_allclose(
            compute_losses(encoder, mesh, pack_rows([text], len(text)))[0], right, atol=1e-4
        )
    assert expected.std() > 0.3


def test_losses_do_not_depend_on_devices_and_pooling(models):
    shape, load = models('llama')
    random = np.random.default_rng(0)
    rows = pack_rows(
        [random.integers(0, VOCABULARY, length) for length in (130, 129, 128, 100)], 130
    )
    shape = dataclasses.replace(shape, max_length=130)
    one, several = make_mesh(devices=jax.devices()[:1]), make_mesh(2, 2, 2)
    expected = compute_losses(load(shape, one), one, rows)
    changed = dataclasses.replace(
        shape, pooling='mean', attention='masked', layer_loop='scan', remat='full'
    )
    np.testing.assert_allclose(
        compute_losses(load(changed, several), several, rows), expected, atol=1e-4
    )


def test_models_without_next_token_losses_are_rejected(models):
    shape, load = models('llama')
    mesh = make_mesh(devices=jax.devices()[:1])
    rows = pack_rows([np.arange(5)], 5)
    for change, line in [
        ({'tied': False}, 'need tie_word_embeddings'),
        ({'causal': False}, 'need a causal model'),
    ]:
        with pytest.raises(UserError, match=line):
            compute_losses(load(dataclasses.replace(shape, **change), mesh), mesh, rows)


def compute_plain_losses(encoder: Encoder, tokens_RxS, segments_RxS, positions_RxS) -> jax.Array:
    """Computes the losses from the full logits."""
    h_RxSxD = encoder.compute_token_states(tokens_RxS, segments_RxS, positions_RxS)
    scores_RxSxV = (h_RxSxD @ encoder.token_embedding[...].T)[..., : encoder.config.vocab_size]
    next_RxSxV = jax.nn.one_hot(jnp.roll(tokens_RxS, -1, axis=1), encoder.config.vocab_size)
    losses_RxS = -jnp.sum(jax.nn.log_softmax(scores_RxSxV) * next_RxSxV, axis=-1)
    return jnp.where((segments_RxS > 0) & (positions_RxS > 0), jnp.roll(losses_RxS, 1, axis=1), 0.0)


def largest_vocabulary_array(program: str) -> int:
    """Returns the size, in elements, of the largest array with an axis of the 90 ids or of the 128
    rows of the token table.
    """
    arrays = [
        [int(size) for size in dims.split(',')] for dims in re.findall(r'f32\[([\d,]+)\]', program)
    ]
    return max(np.prod(sizes) for sizes in arrays if {90, 128} & {*sizes})


@pytest.fixture(scope='module')
def compute_value_and_gradient():
    """Returns a function from (mesh, loss function) to the weighted sum of the losses, its gradient
    by name, and the text of the compiled program.
    """
    random = np.random.default_rng(1)
    rows = pack_rows(
        [random.integers(0, 90, length) for length in (40, 25, 13, 2, 30, 7, 60, 4)], 64
    )
    # Rows are added that are empty.
    rows = tuple(np.pad(array, ((0, 8 - len(array)), (0, 0))) for array in rows)
    weights_RxS = random.normal(size=rows[0].shape).astype(np.float32)
    config = EncoderConfig(
        vocab_size=90, width=16, layers=1, heads=2, max_length=64, remat='none', attention='masked'
    )

    def compute(mesh: jax.sharding.Mesh, form):
        with jax.set_mesh(mesh):
            encoder = jax.jit(lambda: Encoder(config, nnx.Rngs(0)))()
            on_devices = jax.device_put((*rows, weights_RxS), get_batch_sharding(mesh))

            def total(encoder, *arrays):
                return jnp.sum(form(encoder, *arrays[:3]) * arrays[3])

            program = jax.jit(jax.value_and_grad(total)).lower(encoder, *on_devices).compile()
            value, gradient = program(encoder, *on_devices)
            return (
                float(value),
                dict(flatten(jax.device_get(to_nested_dict(gradient)))),
                program.as_text(),
            )

    return compute


def test_value_and_gradient_match_full_logits_on_any_mesh(compute_value_and_gradient, monkeypatch):
    """Logits are computed for some columns at a time, with the table split over the tensor axis,
    and no array has the logits of all tokens.
    """
    monkeypatch.setattr(language, '_MAX_LOGIT_TOKENS', 32)  # 4 columns of 8 rows on one device
    one = make_mesh(devices=jax.devices()[:1])
    value, gradient, text = compute_value_and_gradient(one, compute_plain_losses)
    assert largest_vocabulary_array(text) >= 8 * 64 * 90
    assert np.abs(gradient['token_embedding']).max() > 0.1
    for mesh in (one, make_mesh(2, 2, 2)):
        found, found_gradient, program = compute_value_and_gradient(mesh, compute_token_losses)
        np.testing.assert_allclose(found, value, rtol=1e-5)
        assert found_gradient.keys() == gradient.keys()
        for name, array in gradient.items():
            np.testing.assert_allclose(found_gradient[name], array, atol=2e-5, err_msg=name)
        # Logits of some columns, or the table.
        assert largest_vocabulary_array(program) <= max(8 * 4, 16) * 128


def test_excluded_ids_have_no_probability():
    """Excluded ids take part in neither the softmax nor the argmax."""
    config = EncoderConfig(
        vocab_size=90, width=16, layers=1, heads=2, max_length=64, remat='none', attention='masked'
    )
    rows = pack_rows([np.random.default_rng(0).integers(0, 20, 64)], 64)

    def both():
        encoder = Encoder(config, nnx.Rngs(0))
        encoder.token_embedding[...] *= 50.0
        return (
            language.predict_tokens(encoder, *rows, ids=20),
            encoder.compute_token_states(*rows),
            encoder.token_embedding[...],
        )

    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        found, h_RxSxD, table_VxD = jax.device_get(jax.jit(both)())
    expected = scipy.special.log_softmax(h_RxSxD[0, :-1] @ table_VxD[:20].T, axis=1)
    np.testing.assert_allclose(
        found.losses_RxS[0, 1:], -expected[np.arange(63), rows[0][0, 1:]], rtol=1e-4
    )
    np.testing.assert_array_equal(found.right_RxS[0, 1:], expected.argmax(1) == rows[0][0, 1:])
    assert found.right_RxS.any()
