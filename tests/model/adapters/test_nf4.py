"""NF4 and int8 weights, compared with the published definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from scipy.stats import norm

from cpt_jax.model.adapters.nf4 import LEVELS, NF4, Int8, make_dynamic_levels, quantize_stack
from cpt_jax.runtime.mesh import make_mesh

# bitsandbytes.functional.get_4bit_type('nf4') of 0.50.2.
PUBLISHED = (
    '-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 '
    '-0.18477343022823334 -0.09105003625154495 0.0 '
    '0.07958029955625534 0.16093020141124725 0.24611230194568634 0.33791524171829224 '
    '0.44070982933044434 0.5626170039176941 '
    '0.7229568362236023 1.0'
)
INPUTS, HEADS, HEAD = 128, 12, 8  # 192 blocks: one group of absolute maxima


def make_weights(inputs: int = INPUTS, heads: int = HEADS, seed: int = 0) -> np.ndarray:
    """Returns float32[I, H, K] weights with the scale of a model's; one block of them is zero."""
    found = np.random.default_rng(seed).normal(0, 0.02, (inputs, heads, HEAD)).astype(np.float32)
    found[:64, 1, 1] = 0
    return found


def put_on_mesh(weight: np.ndarray, *spec: str | None) -> jax.Array:
    return jax.device_put(weight, P(*spec))


@pytest.fixture(scope='module')
def coded():
    """Returns the codes of `make_weights()`, and the decoded weights, on one device."""
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        codes = jax.jit(lambda weight: NF4(weight, 1))(
            put_on_mesh(make_weights(), 'fsdp', 'tensor', None)
        )
        return codes, np.asarray(
            jax.jit(lambda codes: codes.gather(jnp.float32, None, 'tensor', None))(codes)
        )


def compute_reference(weight_IxO: np.ndarray) -> np.ndarray:
    """Returns the weight as rounded by bitsandbytes'
    quantize_4bit(weight.T, quant_type='nf4', compress_statistics=True).
    """
    blocks_NxP = weight_IxO.T.reshape(-1, 64)
    absmax_N = np.abs(blocks_NxP).max(1)
    scaled_NxP = blocks_NxP / np.maximum(absmax_N, 1e-38)[:, None]
    units_NxP = LEVELS[np.abs(scaled_NxP[..., None] - LEVELS).argmin(-1)]
    centred_GxA = np.pad(absmax_N - absmax_N.mean(), (0, -len(absmax_N) % 256)).reshape(-1, 256)
    scale_G = np.abs(centred_GxA).max(1)
    places_GxA = np.abs((centred_GxA / scale_G[:, None])[..., None] - make_dynamic_levels()).argmin(
        -1
    )
    absmax_N = (make_dynamic_levels()[places_GxA] * scale_G[:, None]).reshape(-1)[
        : len(absmax_N)
    ] + absmax_N.mean()
    return (units_NxP * absmax_N[:, None]).reshape(weight_IxO.T.shape).T


def test_levels_are_the_published_ones():
    np.testing.assert_array_equal(LEVELS, np.array(PUBLISHED.split(), np.float32))
    # As in bitsandbytes.functional.create_normal_map, with its offset: quantiles of a normal
    # distribution, with one more above zero than below.
    ends = [norm.ppf(np.linspace(0.9677083, 0.5, count)[:-1]) for count in (9, 8)]
    values = np.sort(np.concatenate([ends[0], [0], -ends[1]]))
    np.testing.assert_allclose(LEVELS, values / values.max(), atol=1e-7)


def test_dynamic_levels_are_the_published_ones():
    """The expected levels follow bitsandbytes.functional.create_dynamic_map line by line."""
    data = [0.0, 1.0]
    for i in range(7):
        edges = np.linspace(0.1, 1, 2**i + 1, dtype=np.float32)
        means = (edges[:-1] + edges[1:]) / 2
        data += [*(10.0 ** (i - 6) * means), *(-(10.0 ** (i - 6)) * means)]
    np.testing.assert_allclose(make_dynamic_levels(), np.sort(data), rtol=2e-7)


def test_rounding_matches_bitsandbytes(coded):
    codes, floats = coded
    np.testing.assert_allclose(
        floats.reshape(INPUTS, -1), compute_reference(make_weights().reshape(INPUTS, -1)), atol=1e-8
    )
    assert (floats[:64, 1, 1] == 0).all()
    packed = np.asarray(codes.codes[...])
    assert packed.shape == (INPUTS // 64, 32, HEADS * HEAD) and packed.dtype == np.uint8
    # High bits: the first half of the first block.
    first = LEVELS[packed[0, :, 0] >> 4] * np.abs(make_weights()[:64, 0, 0]).max()
    # Equal up to the rounding of the maximum.
    np.testing.assert_allclose(first, floats[:32, 0, 0], atol=3e-4)


def test_error_and_size_are_as_expected(coded):
    codes, floats = coded
    weight = make_weights()

    def relative(rounded):
        return np.sqrt(
            np.mean((np.asarray(rounded, np.float32) - weight) ** 2) / np.mean(weight**2)
        )

    assert 0.085 < relative(floats) < 0.1  # for normally distributed weights; bfloat16: 0.0017
    assert relative(jnp.asarray(weight).astype(jnp.bfloat16)) < 0.002
    size = {
        name: getattr(codes, name)[...].nbytes for name in ('codes', 'absmax', 'scales', 'offset')
    }
    assert size == {
        'codes': weight.size // 2,
        'absmax': weight.size // 64,
        'scales': 4,
        'offset': 4,
    }


@pytest.mark.parametrize('kind', [NF4, Int8])
def test_stack_on_a_mesh_matches_each_layer_on_one_device(kind):
    layers = np.stack(
        [make_weights(256, 24, seed) for seed in range(2)]
    )  # 768 blocks: three groups
    found = {}
    for sizes in [(1, 1, 1), (2, 2, 2)]:
        with jax.set_mesh(make_mesh(*sizes, devices=jax.devices()[: np.prod(sizes)])):
            if sizes == (1, 1, 1):
                one = jax.jit(lambda weight: kind(weight, 1).dequantize())
                found[sizes] = np.stack(
                    [one(put_on_mesh(layer, 'fsdp', 'tensor', None)) for layer in layers]
                )
            else:
                codes = jax.jit(lambda weight: quantize_stack(kind, weight, 1))(
                    put_on_mesh(layers, None, 'fsdp', 'tensor', None)
                )
                assert (
                    codes.codes[...].addressable_shards[0].data.nbytes * 4
                    == codes.codes[...].nbytes
                )
                found[sizes] = np.asarray(jax.jit(lambda codes: codes.dequantize())(codes))
    np.testing.assert_allclose(found[1, 1, 1], found[2, 2, 2], atol=1e-8)


def test_int8_error_is_at_most_half_a_step():
    weight = make_weights() * np.linspace(0.1, 10, HEADS)[:, None].astype(np.float32)
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        floats = np.asarray(
            jax.jit(lambda weight: Int8(weight, 1).dequantize())(
                put_on_mesh(weight, 'fsdp', 'tensor', None)
            )
        )
    step_HxK = np.abs(weight).max(0) / 127
    assert (np.abs(floats - weight) <= 0.501 * step_HxK).all()
    assert np.abs(floats - weight).max() > 0.4 * step_HxK.max()
