"""The encoder compared with a float64 numpy implementation of one text at a time."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.rotary import rotate
from cpt_jax.runs.checkpoint import to_nested_dict
from cpt_jax.runs.config import flatten
from cpt_jax.runtime.mesh import AXES, assign_mesh_shardings, get_batch_sharding

GPT = EncoderConfig(
    vocab_size=50,
    width=32,
    layers=2,
    heads=4,
    max_length=40,
    remat='none',
    dtype='float32',
    layer_loop='unroll',
)
LLAMA = dataclasses.replace(
    GPT,
    positions='rotary',
    norm='rmsnorm',
    activation='swiglu',
    bias=False,
    kv_heads=2,
    hidden=64,
    attention='blocks',
)
MIXED = dataclasses.replace(
    LLAMA, positions='learned', bias=True, causal=False, kv_heads=1, head_width=6, layers=3
)
ALL_SHAPES = pytest.mark.parametrize('shape', [GPT, LLAMA, MIXED], ids=['gpt', 'llama', 'mixed'])

LENGTHS = [7, 12, 2, 20, 3, 9]
ROWS, ROW_LENGTH = len(LENGTHS), 24
PACKED_ROWS, SINGLE_ROWS = [0, 0, 0, 1, 1, 3], [0, 1, 2, 3, 4, 5]


def make_one_device_mesh() -> jax.sharding.Mesh:
    return jax.make_mesh(
        (1, 1, 1), AXES, (jax.sharding.AxisType.Explicit,) * 3, devices=jax.devices()[:1]
    )


@functools.cache
def make_encoder(config: EncoderConfig) -> Encoder:
    """Returns an encoder with random parameters, also where they are initially zeros or ones."""
    random = np.random.default_rng(0)
    with jax.set_mesh(make_one_device_mesh()):
        abstract = assign_mesh_shardings(
            jax.eval_shape(lambda: Encoder(config, nnx.Rngs(0))), make_one_device_mesh()
        )

    def draw(w):
        return jax.device_put(random.normal(0, 0.4, w.shape).astype(np.float32), w.sharding)

    return jax.tree.map(draw, abstract)


def make_texts(seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 50, length) for length in LENGTHS]


def pack_rows(texts, row_of, at=None, padding=0, first_position=0) -> tuple[np.ndarray, ...]:
    """Packs texts into rows.

    The pooled state of each text is that of its last token, or of the token with index `at`.
    """
    tokens, segments, positions = np.zeros((3, ROWS, ROW_LENGTH), np.int32)
    tokens[:] = padding
    eos, filled = np.zeros((len(texts), 1), np.int32), np.zeros(ROWS, int)
    for number, (text, row) in enumerate(zip(texts, row_of, strict=True)):
        place = slice(filled[row], filled[row] + len(text))
        tokens[row, place], segments[row, place], positions[row, place] = (
            text,
            number + 1,
            np.arange(len(text)) + first_position,
        )
        filled[row] = place.stop
        eos[number] = row * ROW_LENGTH + place.start + (len(text) - 1 if at is None else at)
    return tokens, segments, positions, eos


@functools.cache
def compile_program(config: EncoderConfig):
    """Returns a function from (encoder, rows) to the gradient of a weighted sum of the vectors, and
    the vectors [texts, D].
    """
    weights = (
        np.random.default_rng(3).normal(size=(len(LENGTHS), 1, config.width)).astype(np.float32)
    )

    def objective(encoder, *rows):
        e_BxTxD = encoder(*rows)
        return jnp.sum(e_BxTxD * weights), e_BxTxD[:, 0]

    return jax.jit(jax.grad(objective, has_aux=True))


def run(config: EncoderConfig, *rows) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns gradients by name, and vectors [texts, D].

    The parameters depend only on the sizes in the config, not on how the model is computed.
    """
    with jax.set_mesh(make_one_device_mesh()):
        placed = (
            jax.device_put(array, get_batch_sharding(make_one_device_mesh())) for array in rows
        )
        gradient, vectors = compile_program(config)(make_encoder(config), *placed)
        return dict(flatten(jax.device_get(to_nested_dict(gradient)))), np.asarray(vectors)


def compute_vectors(config: EncoderConfig, *rows) -> np.ndarray:
    return run(config, *rows)[1]


def compute_reference(config: EncoderConfig, tokens: np.ndarray) -> np.ndarray:
    """Computes the vector of one text in float64."""
    p = {
        name: np.asarray(value, np.float64)
        for name, value in flatten(to_nested_dict(make_encoder(config)))
    }
    for name in [
        name for name in p if name.startswith('encoder.last.') or name.startswith('last.')
    ]:
        p[name.replace('last', 'blocks')] = np.concatenate(
            [p.get(name.replace('last', 'blocks'), p[name][:0][None]), p[name][None]]
        )

    def plus(name, n):
        return p[name][n] if name in p else 0

    def norm(h, name, n):
        h = h - h.mean(-1, keepdims=True) if config.norm == 'layernorm' else h
        return h / np.sqrt((h**2).mean(-1, keepdims=True) + config.norm_epsilon) * p[
            name + '.scale'
        ][n] + plus(name + '.bias', n)

    def rotate_complex(h):
        """Rotates pairs of dimensions, as complex numbers, by position x frequency."""
        half = h.shape[-1] // 2
        angles = np.arange(len(h))[:, None, None] * 10_000.0 ** (-np.arange(half) / half)
        turned = (h[..., :half] + 1j * h[..., half:]) * np.exp(1j * angles)
        return np.concatenate([turned.real, turned.imag], -1)

    x = p['token_embedding'][tokens] + (
        p['position_embedding'][: len(tokens)] if config.positions == 'learned' else 0
    )
    for n in range(config.layers):
        at, ff = 'blocks.attention.', 'blocks.feed_forward.'
        h = norm(x, 'blocks.attention_norm', n)
        q, k, v = (
            np.einsum('sd,dhk->shk', h, p[at + w][n]) + plus(f'{at}{w}_bias', n)
            for w in ('query', 'key', 'value')
        )
        if config.positions == 'rotary':
            q, k = rotate_complex(q), rotate_complex(k)
        k, v = (np.repeat(array, config.heads // config.kv_heads, 1) for array in (k, v))
        weights = np.exp(np.einsum('shk,thk->hst', q, k) / np.sqrt(config.head_width)) * (
            np.tri(len(x)) if config.causal else 1
        )
        x = (
            x
            + np.einsum(
                'hst,thk,hkd->sd', weights / weights.sum(-1, keepdims=True), v, p[at + 'out'][n]
            )
            + plus(at + 'out_bias', n)
        )
        h = norm(x, 'blocks.feed_forward_norm', n)
        up = h @ p[ff + 'up'][n] + plus(ff + 'up_bias', n)
        if config.activation == 'swiglu':
            gate = h @ p[ff + 'gate'][n]
            up = up * gate / (1 + np.exp(-gate))
        else:
            up = up / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
        x = x + up @ p[ff + 'down'][n] + plus(ff + 'down_bias', n)
    e = norm(x[-1], 'final_norm', ...)
    return e / np.linalg.norm(e)


@ALL_SHAPES
def test_packed_texts_match_the_reference_of_each_text(shape):
    found = compute_vectors(shape, *pack_rows(make_texts(), PACKED_ROWS))
    np.testing.assert_allclose(
        found, [compute_reference(shape, text) for text in make_texts()], atol=2e-6
    )


@ALL_SHAPES
def test_packed_texts_have_the_gradient_of_one_text_per_row(shape):
    (packed, _), (separate, _) = (
        run(shape, *pack_rows(make_texts(), PACKED_ROWS)),
        run(shape, *pack_rows(make_texts(), SINGLE_ROWS)),
    )
    assert packed.keys() == separate.keys() and len(packed) >= 10
    for name in packed:
        # The softmax does not depend on a key bias: its gradient is zero up to rounding.
        assert np.abs(packed[name]).max() > 1e-3 or name.endswith('key_bias'), name
        np.testing.assert_allclose(
            packed[name],
            separate[name],
            atol=1e-5 * max(1, np.abs(separate[name]).max()),
            err_msg=name,
        )


@ALL_SHAPES
def test_neighbours_and_padding_do_not_change_a_vector(shape):
    mine, others = make_texts(0), make_texts(1)
    first = compute_vectors(shape, *pack_rows(mine, PACKED_ROWS))
    for keep in (0, 1, 3, 5):
        mixed = [mine[i] if i == keep else others[i] for i in range(ROWS)]
        np.testing.assert_allclose(
            compute_vectors(shape, *pack_rows(mixed, PACKED_ROWS, padding=7))[keep],
            first[keep],
            atol=1e-6,
        )
        assert np.abs(compute_vectors(shape, *pack_rows(mixed, PACKED_ROWS)) - first).max() > 0.01


@ALL_SHAPES
def test_later_token_changes_an_earlier_state_unless_causal(shape):
    before, after = make_texts(), [text.copy() for text in make_texts()]
    for text in after:
        text[-1] = (text[-1] + 1) % 50
    first, changed = (
        compute_vectors(shape, *pack_rows(some, PACKED_ROWS, at=0)) for some in (before, after)
    )
    if shape.causal:
        np.testing.assert_allclose(changed, first, atol=1e-6)
        # An earlier token changes a later state.
        assert (
            np.abs(
                compute_vectors(shape, *pack_rows(before, PACKED_ROWS))
                - compute_vectors(shape, *pack_rows(after, PACKED_ROWS))
            )
            .max(1)
            .min()
            > 0.01
        )
    else:
        assert np.abs(changed - first).max(1).min() > 0.01


def test_rotary_positions_are_relative_and_learned_ones_absolute():
    for shape in (LLAMA, GPT):
        first, shifted = (
            compute_vectors(shape, *pack_rows(make_texts(), PACKED_ROWS, first_position=start))
            for start in (0, 15)
        )
        if shape.positions == 'rotary':
            np.testing.assert_allclose(shifted, first, atol=1e-5)
        else:
            assert np.abs(shifted - first).max(1).min() > 0.01


def test_rotated_products_depend_only_on_the_distance():
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
    config = EncoderConfig(
        vocab_size=8, width=8, layers=1, heads=1, max_length=1000, positions='rotary'
    )

    def turn(x, position):
        return np.asarray(rotate(jnp.asarray(x), jnp.array([[position]]), config), np.float64)

    products = np.array(
        [
            [np.sum(turn(q, p) * turn(k, p + distance)) for p in (0, 5, 900)]
            for distance in (0, 3, 40)
        ]
    )
    np.testing.assert_allclose(products, products[:, :1] * np.ones(3), atol=1e-4)
    assert np.ptp(products[:, 0]) > 0.1
    np.testing.assert_array_equal(turn(q, 0), q)


@ALL_SHAPES
def test_vectors_have_unit_length_in_float32(shape):
    found = compute_vectors(shape, *pack_rows(make_texts(), PACKED_ROWS))
    assert found.dtype == np.float32 and found.shape == (ROWS, 32)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    'changes', [('none', 'scan'), ('dots', 'scan'), ('full', 'unroll')], ids=str
)
def test_remat_and_layer_loop_do_not_change_results(changes):
    other = dataclasses.replace(MIXED, remat=changes[0], layer_loop=changes[1])
    (expected, plain), (gradient, found) = (
        run(shape, *pack_rows(make_texts(), PACKED_ROWS)) for shape in (MIXED, other)
    )
    np.testing.assert_allclose(found, plain, atol=1e-6)
    assert gradient.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(
            gradient[name],
            expected[name],
            atol=1e-5 * max(1, np.abs(expected[name]).max()),
            err_msg=name,
        )


def test_bfloat16_is_close_and_returns_float32():
    half = dataclasses.replace(GPT, dtype='bfloat16')
    with jax.set_mesh(make_one_device_mesh()):
        placed = [
            jax.device_put(array, get_batch_sharding(make_one_device_mesh()))
            for array in pack_rows(make_texts(), PACKED_ROWS)
        ]
        found = np.asarray(
            jax.jit(lambda encoder, *rows: encoder(*rows)[:, 0])(make_encoder(half), *placed)
        )
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    full = compute_vectors(GPT, *pack_rows(make_texts(), PACKED_ROWS))
    assert np.sum(found * full, axis=1).min() > 0.999
    assert np.abs(found - full).max() > 1e-5  # it did compute in bfloat16


@pytest.mark.parametrize(('dtype', 'asked'), [('float32', 'HIGHEST'), ('bfloat16', 'DEFAULT')])
def test_every_product_requests_true_float32(dtype, asked):
    """By default, TPUs round the inputs of float32 products to bfloat16. For bfloat16 inputs the
    precision stays at the default, because kernels reject any other.
    """
    shape = dataclasses.replace(LLAMA, dtype=dtype)
    with jax.set_mesh(make_one_device_mesh()):
        placed = [
            jax.device_put(array, get_batch_sharding(make_one_device_mesh()))
            for array in pack_rows(make_texts(), PACKED_ROWS)
        ]
        text = (
            jax.jit(jax.grad(lambda encoder, *rows: encoder(*rows).sum()))
            .lower(make_encoder(shape), *placed)
            .as_text()
        )
    asked_for = re.findall(r'dot_general.* precision = \[(\w+), (\w+)\]', text)
    assert len(asked_for) == text.count('stablehlo.dot_general') > 20 and set(asked_for) == {
        (asked, asked)
    }
