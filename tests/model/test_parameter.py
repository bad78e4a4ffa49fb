"""Sharding and initial values of parameters, and gradients of gathered weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.parameter import (
    add_bias,
    broadcast_vector,
    gather_once,
    gather_weight,
    look_up_rows,
)
from cpt_jax.runs.checkpoint import to_nested_dict
from cpt_jax.runs.config import flatten
from cpt_jax.runtime.mesh import (
    AXES,
    BATCH,
    assign_mesh_shardings,
    get_batch_sharding,
    make_mesh,
    shardings,
)

# A config with matrices, biases, norms, a gate and a position table.
CONFIG = EncoderConfig(
    vocab_size=200,
    width=64,
    layers=2,
    heads=4,
    max_length=16,
    activation='swiglu',
    remat='none',
    dtype='float32',
    layer_loop='unroll',
)
PASSTHROUGH = dataclasses.replace(CONFIG, init='passthrough')


@functools.cache
def compile_init(config: EncoderConfig, sizes: tuple[int, int, int]):
    """Returns the abstract encoder, and a jitted function from a seed to an encoder."""
    mesh = make_mesh(*sizes)
    with jax.set_mesh(mesh):

        def init(seed):
            return Encoder(config, nnx.Rngs(jax.random.key(seed)))

        abstract = assign_mesh_shardings(jax.eval_shape(init, 0), mesh)
        return abstract, jax.jit(init, out_shardings=shardings(abstract))


@functools.cache
def initialize(
    config: EncoderConfig, sizes: tuple[int, int, int] = (8, 1, 1), seed: int = 0
) -> Encoder:
    with jax.set_mesh(make_mesh(*sizes)):
        return compile_init(config, sizes)[1](seed)


def flatten_parameters(encoder: Encoder) -> dict:
    return dict(flatten(to_nested_dict(encoder)))


def test_every_parameter_is_sharded_as_declared():
    abstract, made = (
        flatten_parameters(compile_init(CONFIG, (2, 2, 2))[0]),
        flatten_parameters(initialize(CONFIG, (2, 2, 2))),
    )
    assert abstract.keys() == made.keys() and len(made) == 38
    sizes = {'data': 2, 'fsdp': 2, 'tensor': 2, None: 1}
    for name, array in made.items():
        spec = abstract[name].sharding.spec
        assert set(spec) <= {*AXES, None} and len(spec) == array.ndim, name
        assert array.dtype == np.float32 and array.sharding.spec == spec, name
        part = tuple(size // sizes[axis] for size, axis in zip(array.shape, spec, strict=True))
        assert {shard.data.shape for shard in array.addressable_shards} == {part}, name
    # All matrices are split; only vectors are replicated.
    whole = {
        name.rpartition('.')[2]
        for name, array in made.items()
        if array.sharding.is_fully_replicated
    }
    assert whole == {'scale', 'bias', 'out_bias', 'down_bias'}


def test_values_depend_only_on_the_seed():
    sharded, replicated, other = (
        flatten_parameters(initialize(CONFIG, sizes, seed))
        for sizes, seed in [((2, 2, 2), 0), ((8, 1, 1), 0), ((8, 1, 1), 1)]
    )
    for name, array in sharded.items():
        np.testing.assert_array_equal(array, replicated[name], err_msg=name)
        constant = name.endswith(('bias', 'scale'))
        assert np.array_equal(array, other[name]) == constant, name


def test_initial_values_are_those_of_gpt2():
    made = {
        name: np.asarray(array) for name, array in flatten_parameters(initialize(CONFIG)).items()
    }
    for name, array in made.items():
        if name.endswith(('bias', 'scale')):
            np.testing.assert_array_equal(array, float(name.endswith('scale')), err_msg=name)
        else:
            # 0.02 / sqrt(2 x 2 layers).
            std = {'out': 0.01, 'down': 0.01, 'position_embedding': 0.01}.get(
                name.rpartition('.')[2], 0.02
            )
            np.testing.assert_allclose(array.std(), std, rtol=0.05, err_msg=name)
            assert abs(array.mean()) < std / 10, name
    layers = made['blocks.feed_forward.up'][0], made['last.feed_forward.up']
    assert abs(np.corrcoef(layers[0].ravel(), layers[1].ravel())[0, 1]) < 0.1


def encode_untrained(config: EncoderConfig, tokens_RxS: np.ndarray) -> np.ndarray:
    """Returns the vectors of texts, one per row, of an untrained encoder."""
    r, s = tokens_RxS.shape
    rows = (
        tokens_RxS,
        np.ones((r, s)),
        np.arange(s) * np.ones((r, 1)),
        np.arange(r)[:, None] % (r // 8) * s + s - 1,
    )
    with jax.set_mesh(make_mesh(8, 1, 1)):
        placed = (
            jax.device_put(np.asarray(array, np.int32), get_batch_sharding(make_mesh(8, 1, 1)))
            for array in rows
        )
        encode = jax.jit(lambda encoder, *rows: encoder(*rows)[:, 0])
        return np.asarray(encode(initialize(config), *placed))


def test_passthrough_makes_texts_with_common_words_similar():
    random = np.random.default_rng(0)
    texts = np.array([random.choice(190, 11, replace=False) for _ in range(16)])
    shuffled = texts.copy()
    shuffled[:, :10] = random.permuted(shuffled[:, :10], axis=1)
    half = shuffled.copy()
    half[:, :5] = random.integers(0, 190, (16, 5))
    # Append a closing delimiter.
    texts, shuffled, half = (
        np.concatenate([rows, np.full((16, 1), 199)], 1) for rows in (texts, shuffled, half)
    )

    def cosines(shape, others):
        vectors = encode_untrained(shape, np.concatenate([texts, others]))
        return vectors[:16] @ vectors[16:].T

    own = np.eye(16, dtype=bool)
    same, some = (cosines(PASSTHROUGH, others) for others in (shuffled, half))
    assert same[own].min() > same[~own].max()
    assert same[own].mean() > some[own].mean() + 0.2 and some[own].mean() > some[~own].mean() + 0.15
    # Half of its words are enough to find a text (chance level: 0.06).
    assert np.mean(some.argmax(1) == np.arange(16)) > 0.5
    assert cosines(CONFIG, half).min() > 0.9


def test_passthrough_value_times_output_is_the_identity():
    made = flatten_parameters(initialize(PASSTHROUGH))
    for block, formula, identity in [
        ('blocks', 'ndhk,nhke->nde', np.eye(64)[None]),
        ('last', 'dhk,hke->de', np.eye(64)),
    ]:
        value, out = (np.asarray(made[f'{block}.attention.{name}']) for name in ('value', 'out'))
        np.testing.assert_array_equal(np.einsum(formula, value, out), identity)


class Pair(nnx.Module):
    """A module with a matrix and a vector."""

    def __init__(self, matrix, vector):
        self.matrix, self.vector = nnx.Param(matrix), nnx.Param(vector)


def run_loop_of_products(module: Pair, x_CxRxSxD: jax.Array) -> jax.Array:
    """Uses both parameters in each iteration of a loop."""

    def use(total, x_RxSxD):
        h_RxSxF = jnp.einsum(
            'rsd,df->rsf',
            x_RxSxD,
            gather_weight(module.matrix, jnp.float32, None, 'tensor'),
            out_sharding=P(BATCH, None, 'tensor'),
        )
        return total + jnp.sum((h_RxSxF + broadcast_vector(module.vector, h_RxSxF)) ** 2), None

    return jax.lax.scan(use, jnp.zeros(()), x_CxRxSxD)[0]


@pytest.mark.parametrize('sizes', [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
@pytest.mark.parametrize('once', [False, True])
def test_gathered_weight_has_the_gradient_of_a_plain_one(sizes, once):
    random = np.random.default_rng(0)
    matrix, vector, x = (
        random.normal(size=size).astype(np.float32) for size in [(16, 8), (8,), (3, 8, 5, 16)]
    )
    mesh = make_mesh(*sizes)
    with jax.set_mesh(mesh):

        def put(array, *spec):
            return jax.device_put(array, jax.NamedSharding(mesh, P(*spec)))

        module = Pair(put(matrix, 'fsdp', 'tensor'), put(vector, 'tensor'))
        run = jax.grad(
            lambda module, x: run_loop_of_products(gather_once(module) if once else module, x)
        )
        gradient = jax.jit(run)(module, put(x, None, BATCH))
    expected = jax.grad(
        lambda m, v: jnp.sum((jnp.einsum('crsd,df->crsf', x, m) + v) ** 2), argnums=(0, 1)
    )(matrix, vector)
    np.testing.assert_allclose(gradient.matrix[...], expected[0], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(gradient.vector[...], expected[1], rtol=1e-4, atol=1e-3)
    assert gradient.matrix[...].sharding.spec == P('fsdp', 'tensor')  # split as the weight is


def test_gradient_of_a_common_table_row_is_summed_in_float32(meshes):
    """A running sum in bfloat16 would stop at 256."""
    ids = np.zeros((64, 48), np.int32)  # 384 tokens a device, of one delimiter
    with jax.set_mesh(meshes[1, 8, 1]):
        table = nnx.Param(jax.device_put(jnp.ones((8, 8)), P(None, 'fsdp')))
        rows = jax.device_put(ids, P(BATCH))
        found = jax.jit(
            jax.grad(
                lambda table: look_up_rows(table, rows, jnp.bfloat16).astype(jnp.float32).sum()
            )
        )(table)
        assert look_up_rows(table, rows, jnp.bfloat16).dtype == jnp.bfloat16
    np.testing.assert_array_equal(found[...], np.eye(8)[:, :1] * ids.size * np.ones(8))


def test_gradient_of_a_bias_is_summed_in_float32(meshes):
    """Partial sums in bfloat16 would be 0.1 % off."""
    gradients = np.random.default_rng(0).uniform(0.5, 1.5, (8, 4096, 4)).astype(jnp.bfloat16)
    with jax.set_mesh(meshes[2, 2, 2]):
        h = jax.device_put(gradients * 0, P(BATCH, None, 'tensor'))
        bias = jax.device_put(jnp.ones(4), P('tensor'))
        _, pull_back = jax.vjp(lambda bias: add_bias(h, broadcast_vector(bias, h)), bias)
        (found,) = pull_back(jax.device_put(gradients, P(BATCH, None, 'tensor')))
    np.testing.assert_allclose(found, gradients.astype(np.float64).sum((0, 1)), rtol=1e-6)


@pytest.mark.parametrize('activation', ['gelu', 'swiglu'])
def test_no_gradient_of_an_encoder_is_summed_over_positions_in_bfloat16(activation, meshes):
    """Matrix products of bfloat16 add up in float32; a `reduce` would not."""
    config = dataclasses.replace(CONFIG, activation=activation, dtype='bfloat16')
    with jax.set_mesh(meshes[2, 2, 2]):
        encoder = assign_mesh_shardings(
            jax.eval_shape(lambda: Encoder(config, nnx.Rngs(0))), meshes[2, 2, 2]
        )
        rows = jax.ShapeDtypeStruct((8, 16), np.int32, sharding=get_batch_sharding(meshes[2, 2, 2]))
        gradient = jax.jit(jax.grad(lambda encoder, *rows: encoder(*rows).sum()))
        program = gradient.lower(encoder, rows, rows, rows, rows).as_text()
    reductions = [line for line in program.splitlines() if 'stablehlo.reduce(' in line]
    assert any('f32' in line for line in reductions)
    assert [line for line in reductions if 'bf16' in line] == []


@pytest.mark.parametrize('sums_in_float32', [False, True])
def test_gradients_are_reduced_in_the_dtype_that_is_asked_for(sums_in_float32):
    """The dtype of the sum of a device, which is combined with those of the others, is read from
    the program: XLA:CPU itself computes bfloat16 in float32.
    """
    with jax.set_mesh(make_mesh(2, 4, 1)):

        def objective(w_DxV, x_RxD):
            weight = nnx.Param(w_DxV)
            gathered = gather_weight(
                weight, jnp.bfloat16, None, None, sums_in_float32=sums_in_float32
            )
            product = jnp.einsum('rd,dv->rv', x_RxD.astype(jnp.bfloat16), gathered)
            return jnp.sum(product.astype(jnp.float32) ** 2)

        random = np.random.default_rng(0)
        w_DxV = jax.device_put(random.normal(size=(64, 32)).astype(np.float32), P('fsdp', None))
        x_RxD = jax.device_put(random.normal(size=(16, 64)).astype(np.float32), P(BATCH))
        lowered = jax.jit(jax.grad(objective)).lower(w_DxV, x_RxD)
        last = [line for line in lowered.as_text().splitlines() if 'unreduced={' in line][-1]
        assert last.endswith('xf32>' if sums_in_float32 else 'xbf16>'), last
        gradient = lowered.compile()(w_DxV, x_RxD)
        assert gradient.dtype == jnp.float32
        assert gradient.sharding.spec == w_DxV.sharding.spec
    x, w = np.asarray(x_RxD), np.asarray(w_DxV)
    exact = 2 * x.T @ (x @ w)
    np.testing.assert_allclose(gradient, exact, atol=0.01 * np.abs(exact).max())


@pytest.mark.parametrize(('devices', 'bound'), [(256, 0.022), (512, 0.03)])
@pytest.mark.parametrize('mean', [0.0, 1.0])
def test_error_of_a_sum_over_many_devices(devices, bound, mean):
    """One after another, as around a ring. A torus adds axis by axis, which has fewer terms."""
    terms = np.random.default_rng(0).normal(mean, 1, (devices, 2048)).astype(jnp.bfloat16)
    exact = terms.astype(np.float64).sum(0)

    def compute_error(dtype) -> float:
        total = np.zeros(2048, dtype)
        for term in terms:
            total = (total.astype(np.float32) + term.astype(np.float32)).astype(dtype)
        return float(np.sqrt(np.mean((total - exact) ** 2) / np.mean(exact**2)))

    assert bound / 2 < compute_error(jnp.bfloat16) < bound
    assert compute_error(np.float32) < 1e-6
