import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

from cpt_jax.plan.hlo.flops import count_flops, count_valid_positions
from cpt_jax.plan.hlo.program import parse_program
from cpt_jax.plan.hlo.roofline import time_instructions


def attention(q, k, v):
    scores = jnp.einsum('rshk,rthk->rhst', q, k, preferred_element_type=jnp.float32)
    return jnp.einsum('rhst,rthk->rshk', jax.nn.softmax(scores).astype(q.dtype), v)


def gradients(function):
    return lambda *arrays: jax.grad(
        lambda *arrays: function(*arrays).astype(jnp.float32).sum(), range(len(arrays))
    )(*arrays)


def convolution(*settings, **groups):
    return functools.partial(_convolve, settings, groups)


def _convolve(settings, groups, x, w):
    return jax.lax.conv_general_dilated(
        x, w, *settings, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), **groups
    )


IMAGES, KERNEL = (8, 16, 16, 64), (3, 3, 64, 128)
PROGRAMS = {
    'product': (lambda a, b: a @ b, [(256, 512), (512, 384)]),
    'products in a batch': (
        lambda a, b: jnp.einsum('bhij,bhjk->bhik', a, b),
        [(6, 5, 128, 256), (6, 5, 256, 128)],
    ),
    'two layers, backward': (
        gradients(lambda a, b, c: jnp.tanh(a @ b) @ c),
        [(256, 512), (512, 384), (384, 256)],
    ),
    'attention, backward': (gradients(attention), [(2, 256, 4, 128)] * 3),
    'stride': (convolution((2, 3), ((1, 2), (0, 3)), (1, 1), (1, 1)), [IMAGES, KERNEL]),
    'kernel dilated': (convolution((1, 1), ((2, 2), (2, 2)), (1, 1), (2, 2)), [IMAGES, KERNEL]),
    'input dilated': (convolution((1, 1), ((2, 2), (1, 1)), (2, 3), (1, 1)), [IMAGES, KERNEL]),
    'features in groups': (
        convolution((1, 1), 'SAME', (1, 1), (1, 1), feature_group_count=4),
        [IMAGES, (3, 3, 16, 128)],
    ),
    'batch in groups': (
        convolution((1, 1), 'SAME', (1, 1), (1, 1), batch_group_count=2),
        [IMAGES, KERNEL],
    ),
    'convolution, backward': (
        gradients(convolution((2, 2), 'SAME', (1, 1), (1, 1))),
        [IMAGES, KERNEL],
    ),
}


@pytest.mark.parametrize('name', PROGRAMS)
def test_flops_match_xlas_cost_analysis(devices, compiled, name):
    """XLA also counts element-wise operations: 1.3 % of the attention here, almost none elsewhere.
    The programs have no loops, whose bodies XLA counts once.
    """
    function, shapes = PROGRAMS[name]
    executable = compiled(devices, function, *((shape, P()) for shape in shapes))
    counted = count_flops(parse_program(executable.as_text()))
    assert counted.uncounted == ()
    assert 0.985 <= counted.total / executable.cost_analysis()['flops'] <= 1


def test_valid_positions_match_a_count_by_hand():
    random = np.random.default_rng(0)
    for _ in range(200):
        inputs, kernel, outputs, stride, input_dilation, kernel_dilation = random.integers(
            1, 7, 6
        ).tolist()
        low = int(random.integers(-2, 5))
        valid = 0
        for out in range(outputs):
            for kernel_index in range(kernel):
                at = out * stride - low + kernel_index * kernel_dilation
                valid += at % input_dilation == 0 and 0 <= at // input_dilation < inputs
        assert (
            count_valid_positions(
                inputs, kernel, outputs, stride, low, input_dilation, kernel_dilation
            )
            == valid
        )


def _kernel(x, y, out):
    out[...] = jnp.dot(x[...], y[...], preferred_element_type=jnp.float32).astype(out.dtype)


@pytest.mark.parametrize(
    'cost',
    [None, pl.CostEstimate(flops=1234, transcendentals=0, bytes_accessed=1)],
    ids=['silent', 'estimate'],
)
def test_kernel_counts_its_cost_estimate_or_is_listed_as_uncounted(tpus, program, cost):
    out = jax.ShapeDtypeStruct((128, 128), jnp.bfloat16)

    def kernel(x, y):
        return pl.pallas_call(_kernel, out_shape=out, cost_estimate=cost)(x, y)

    def twice(x, y):
        return jax.lax.scan(lambda c, _: (kernel(c, y), None), x, None, length=2)[0]

    counted = count_flops(program(tpus, twice, ((128, 128), P()), ((128, 128), P()), mesh=(1,)))
    assert (counted.total, counted.uncounted) == ((2468, ()) if cost else (0, ('tpu_custom_call',)))


def test_all_branches_of_a_conditional_count(devices, program):
    def branches(a, b):
        return jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: a @ b @ b)

    assert (
        count_flops(program(devices, branches, ((128, 128), P()), ((128, 128), P()))).total
        == 3 * 2 * 128**3
    )


@pytest.mark.parametrize('q_layout', [1, 2])
@pytest.mark.parametrize('k_layout', [1, 2])
def test_attention_kernels_count_in_both_orders_of_their_axes(q_layout, k_layout):
    """Four heads of 64 dimensions, 512 queries, 256 keys, two products."""
    queries = {1: '512,64', 2: '64,512'}[q_layout]
    keys = {1: '256,64', 2: '64,256'}[k_layout]
    text = f"""HloModule m

ENTRY %main (x: bf16[4,{queries}], y: bf16[4,{keys}]) -> bf16[4,512,64] {{
  %x = bf16[4,{queries}] parameter(0)
  %y = bf16[4,{keys}] parameter(1)
  ROOT %splash_mha_fwd.1 = bf16[4,512,64] custom-call(%x, %y, %y), custom_call_target="tpu_custom_call", frontend_attributes={{kernel_metadata={{
"xprof_metadata":"{{\\"block_q\\": 256, \\"q_layout\\": {q_layout}, \\"k_layout\\": {k_layout}}}"
}}}}
}}
"""
    module = parse_program(text)
    assert count_flops(module).total == 2 * (2 * 4 * 512 * 256 * 64)
    assert [time.head_width for time in time_instructions(module, 1.0, 1.0)][-1] == 64
