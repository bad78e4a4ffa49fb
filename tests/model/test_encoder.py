"""The encoder against plain float64 numpy, one text at a time."""

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
from cpt_jax.runs.checkpoint import by_name
from cpt_jax.runs.config import flatten
from cpt_jax.runtime.mesh import AXES, batch_sharding, on_mesh

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
EVERY = pytest.mark.parametrize('shape', [GPT, LLAMA, MIXED], ids=['gpt', 'llama', 'mixed'])

LENGTHS = [7, 12, 2, 20, 3, 9]
ROWS, ROW_LENGTH = len(LENGTHS), 24
PACKED, ALONE = [0, 0, 0, 1, 1, 3], [0, 1, 2, 3, 4, 5]


def one_device() -> jax.sharding.Mesh:
    return jax.make_mesh(
        (1, 1, 1), AXES, (jax.sharding.AxisType.Explicit,) * 3, devices=jax.devices()[:1]
    )


@functools.cache
def trained(config: EncoderConfig) -> Encoder:
    """An encoder whose parameters are far from their initial zeros and ones."""
    random = np.random.default_rng(0)
    with jax.set_mesh(one_device()):
        abstract = on_mesh(jax.eval_shape(lambda: Encoder(config, nnx.Rngs(0))), one_device())

    def some(w):
        return jax.device_put(random.normal(0, 0.4, w.shape).astype(np.float32), w.sharding)

    return jax.tree.map(some, abstract)


def texts(seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 50, length) for length in LENGTHS]


def rows(texts, row_of, at=None, padding=0, first_position=0) -> tuple[np.ndarray, ...]:
    """Texts one behind the other in rows; the state taken of each is that of its last token, or of
    token number `at`.
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
def program(config: EncoderConfig):
    """(encoder, rows) -> the gradient of the vectors' sum with fixed weights, and the vectors
    [texts, D].
    """
    weights = (
        np.random.default_rng(3).normal(size=(len(LENGTHS), 1, config.width)).astype(np.float32)
    )

    def objective(encoder, *rows):
        e_BxTxD = encoder(*rows)
        return jnp.sum(e_BxTxD * weights), e_BxTxD[:, 0]

    return jax.jit(jax.grad(objective, has_aux=True))


def run(config: EncoderConfig, *rows) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Gradients by name, and vectors [texts, D]; `trained` depends on the sizes alone, not on how
    it is computed.
    """
    with jax.set_mesh(one_device()):
        placed = (jax.device_put(array, batch_sharding(one_device())) for array in rows)
        gradient, vectors = program(config)(trained(config), *placed)
        return dict(flatten(jax.device_get(by_name(gradient)))), np.asarray(vectors)


def vectors(config: EncoderConfig, *rows) -> np.ndarray:
    return run(config, *rows)[1]


def reference(config: EncoderConfig, tokens: np.ndarray) -> np.ndarray:
    """One text, all positions of all layers, float64."""
    p = {name: np.asarray(value, np.float64) for name, value in flatten(by_name(trained(config)))}
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

    def turn(h):
        """Pairs of units as complex numbers, turned by position x frequency."""
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
        q, k = (turn(q), turn(k)) if config.positions == 'rotary' else (q, k)
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


@EVERY
def test_packed_texts_are_the_plain_computation_of_each_alone(shape):
    found = vectors(shape, *rows(texts(), PACKED))
    np.testing.assert_allclose(found, [reference(shape, text) for text in texts()], atol=2e-6)


@EVERY
def test_packed_texts_have_the_gradient_of_a_text_a_row(shape):
    (packed, _), (alone, _) = run(shape, *rows(texts(), PACKED)), run(shape, *rows(texts(), ALONE))
    assert packed.keys() == alone.keys() and len(packed) >= 10
    for name in packed:
        # A bias of all keys shifts a softmax's scores alike: its gradient is zero but for rounding.
        assert np.abs(packed[name]).max() > 1e-3 or name.endswith('key_bias'), name
        np.testing.assert_allclose(
            packed[name], alone[name], atol=1e-5 * max(1, np.abs(alone[name]).max()), err_msg=name
        )


@EVERY
def test_neighbours_and_padding_never_change_a_vector(shape):
    mine, others = texts(0), texts(1)
    first = vectors(shape, *rows(mine, PACKED))
    for keep in (0, 1, 3, 5):
        mixed = [mine[i] if i == keep else others[i] for i in range(ROWS)]
        np.testing.assert_allclose(
            vectors(shape, *rows(mixed, PACKED, padding=7))[keep], first[keep], atol=1e-6
        )
        assert np.abs(vectors(shape, *rows(mixed, PACKED)) - first).max() > 0.01


@EVERY
def test_a_later_token_moves_an_earlier_state_unless_causal(shape):
    before, after = texts(), [text.copy() for text in texts()]
    for text in after:
        text[-1] = (text[-1] + 1) % 50
    first, changed = (vectors(shape, *rows(some, PACKED, at=0)) for some in (before, after))
    if shape.causal:
        np.testing.assert_allclose(changed, first, atol=1e-6)
        # And an earlier token moves a later state.
        assert (
            np.abs(vectors(shape, *rows(before, PACKED)) - vectors(shape, *rows(after, PACKED)))
            .max(1)
            .min()
            > 0.01
        )
    else:
        assert np.abs(changed - first).max(1).min() > 0.01


def test_rotary_positions_count_from_each_other_and_learned_ones_from_the_start():
    for shape in (LLAMA, GPT):
        first, shifted = (
            vectors(shape, *rows(texts(), PACKED, first_position=start)) for start in (0, 15)
        )
        if shape.positions == 'rotary':
            np.testing.assert_allclose(shifted, first, atol=1e-5)
        else:
            assert np.abs(shifted - first).max(1).min() > 0.01


def test_rotated_products_depend_on_the_distance_alone():
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


@EVERY
def test_vectors_are_float32_of_unit_length(shape):
    found = vectors(shape, *rows(texts(), PACKED))
    assert found.dtype == np.float32 and found.shape == (ROWS, 32)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    'changes', [('none', 'scan'), ('dots', 'scan'), ('full', 'unroll')], ids=str
)
def test_what_is_computed_again_and_how_layers_are_looped_changes_nothing(changes):
    other = dataclasses.replace(MIXED, remat=changes[0], layer_loop=changes[1])
    (expected, plain), (gradient, found) = (
        run(shape, *rows(texts(), PACKED)) for shape in (MIXED, other)
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


def test_bfloat16_is_close_and_gives_float32():
    half = dataclasses.replace(GPT, dtype='bfloat16')
    with jax.set_mesh(one_device()):
        placed = [
            jax.device_put(array, batch_sharding(one_device())) for array in rows(texts(), PACKED)
        ]
        found = np.asarray(
            jax.jit(lambda encoder, *rows: encoder(*rows)[:, 0])(trained(half), *placed)
        )
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    full = vectors(GPT, *rows(texts(), PACKED))
    assert np.sum(found * full, axis=1).min() > 0.999
    assert np.abs(found - full).max() > 1e-5  # it did compute in bfloat16


@pytest.mark.parametrize(('dtype', 'asked'), [('float32', 'HIGHEST'), ('bfloat16', 'DEFAULT')])
def test_float32_is_asked_for_in_every_product(dtype, asked):
    """Or TPUs would round what is multiplied to bfloat16. Where it is bfloat16, kernels refuse to
    be asked.
    """
    shape = dataclasses.replace(LLAMA, dtype=dtype)
    with jax.set_mesh(one_device()):
        placed = [
            jax.device_put(array, batch_sharding(one_device())) for array in rows(texts(), PACKED)
        ]
        text = (
            jax.jit(jax.grad(lambda encoder, *rows: encoder(*rows).sum()))
            .lower(trained(shape), *placed)
            .as_text()
        )
    asked_for = re.findall(r'dot_general.* precision = \[(\w+), (\w+)\]', text)
    assert len(asked_for) == text.count('stablehlo.dot_general') > 20 and set(asked_for) == {
        (asked, asked)
    }
