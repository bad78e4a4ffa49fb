"""All forms of attention agree, and match numpy, on packed rows."""

import functools
import re
from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.sharding import PartitionSpec as P

from cpt_jax.model.attention import make_attend
from cpt_jax.model.config import EncoderConfig
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.hardware import has_attention_kernel
from cpt_jax.runtime.mesh import BATCH, make_mesh

ROWS, LENGTH, HEADS, GROUPS, WIDTH = 4, 256, 4, 2, 64
HEADS_SPLIT = BATCH, None, 'tensor'


def make_segments() -> np.ndarray:
    """Returns int32[R, S] segments: texts of random lengths, with padding at the end of two rows;
    the last row is a single text.
    """
    random = np.random.default_rng(1)
    segments = np.sort(random.integers(1, 9, (ROWS, LENGTH)), axis=1)
    segments[:2, -40:] = 0
    segments[-1] = 1
    return segments.astype(np.int32)


@functools.cache  # several tests use the same results
def compute_value_and_gradients(
    form: str,
    causal: bool,
    sizes: tuple[int, int, int],
    reach: int = 0,
    local: bool | tuple[bool, ...] = False,
):
    random, mesh = np.random.default_rng(0), make_mesh(*sizes)
    q, k, v = (
        random.normal(size=(ROWS, LENGTH, heads, WIDTH)).astype(np.float32)
        for heads in (HEADS, GROUPS, GROUPS)
    )
    with jax.set_mesh(mesh):

        def put(array, *spec):
            return jax.device_put(array, jax.NamedSharding(mesh, P(*spec)))

        segments_RxS = put(make_segments(), BATCH)
        weights = put(
            random.normal(size=(ROWS, LENGTH, HEADS, WIDTH)).astype(np.float32), *HEADS_SPLIT
        )

        def attend(local, *qkv):
            return make_attend(segments_RxS, causal, form, reach, local)(*qkv)

        qkv = [put(array, *HEADS_SPLIT) for array in (q, k, v)]
        if isinstance(local, bool):
            return jax.device_get(
                jax.jit(
                    jax.value_and_grad(
                        lambda *qkv: jnp.sum(weights * attend(local, *qkv)), (0, 1, 2)
                    )
                )(*qkv)
            )

        # A loop over layers of both kinds, with weights 0.4 and 0.6.
        def sums(*qkv):
            return jax.lax.map(lambda kind: jnp.sum(weights * attend(kind, *qkv)), jnp.array(local))

        return jax.device_get(
            jax.jit(
                jax.value_and_grad(
                    lambda *qkv: jnp.sum(sums(*qkv) * jnp.array([0.4, 0.6])), (0, 1, 2)
                )
            )(*qkv)
        )


@pytest.mark.parametrize('causal', [True, False])
@pytest.mark.parametrize('sizes', [(4, 1, 2), (2, 2, 2)])
def test_tpu_kernel_matches_masked_attention(causal, sizes):
    (value, gradients), (expected, masked_gradients) = (
        compute_value_and_gradients(form, causal, sizes) for form in ('interpreted', 'masked')
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-3)
    for gradient, masked in zip(gradients, masked_gradients, strict=True):
        assert np.abs(masked).max() > 0.1
        np.testing.assert_allclose(gradient, masked, atol=2e-5)


@pytest.mark.parametrize('causal', [True, False])
@pytest.mark.parametrize(('form', 'reach'), [('masked', 30), ('blocks', 70), ('interpreted', 30)])
def test_window_hides_distant_tokens(form, reach, causal):
    """Compares single queries with numpy, and the gradient with masked attention, also if local and
    full layers alternate.
    """
    random, segments = np.random.default_rng(0), make_segments()
    q, k, v = (
        random.normal(size=(ROWS, LENGTH, heads, WIDTH)).astype(np.float32)
        for heads in (HEADS, GROUPS, GROUPS)
    )
    with jax.set_mesh(make_mesh(2, 2, 2)):

        def put(array, *spec):
            return jax.device_put(array, P(*spec))

        heads = [put(array, *HEADS_SPLIT) for array in (q, k, v)]
        found = np.asarray(
            jax.jit(make_attend(put(segments, BATCH), causal, form, reach, True))(*heads)
        )
    columns = np.arange(LENGTH)
    for row, query, head in [
        (0, 5, 0),
        (1, 200, 3),
        (2, 63, 1),
        (2, 64, 2),
        (3, 255, 3),
        (3, 100, 0),
        (3, 0, 1),
    ]:
        own = (
            (segments[row] == segments[row, query])
            & ((columns <= query) | (not causal))
            & (abs(columns - query) <= reach)
        )
        scores = k[row, own, head // 2] @ q[row, query, head] / WIDTH**0.5
        expected = np.exp(scores) @ v[row, own, head // 2] / np.exp(scores).sum()
        np.testing.assert_allclose(found[row, query, head], expected, atol=1e-5)
    (near, gradients), (full, _), (mixed, mixed_gradients) = (
        compute_value_and_gradients(form, causal, (2, 2, 2), reach, local)
        for local in (True, False, (True, False))
    )
    (expected, masked_gradients), (_, full_gradients) = (
        compute_value_and_gradients('masked', causal, (2, 2, 2), reach, local)
        for local in (True, False)
    )
    np.testing.assert_allclose(
        [near, mixed], [expected, 0.4 * near + 0.6 * full], rtol=1e-5, atol=1e-3
    )
    assert abs(near - full) > 1
    for gradient, mixed_gradient, masked, whole in zip(
        gradients, mixed_gradients, masked_gradients, full_gradients, strict=True
    ):
        np.testing.assert_allclose(gradient, masked, atol=2e-5)
        np.testing.assert_allclose(mixed_gradient, 0.4 * masked + 0.6 * whole, atol=2e-5)


@pytest.mark.parametrize('causal', [True, False])
def test_mask_hides_other_texts_and_later_positions(causal):
    """Compares single queries with numpy."""
    random, segments = np.random.default_rng(0), make_segments()
    q, k, v = (
        random.normal(size=(ROWS, LENGTH, heads, WIDTH)).astype(np.float32)
        for heads in (HEADS, GROUPS, GROUPS)
    )
    with jax.set_mesh(make_mesh(2, 2, 2)):

        def put(array, *spec):
            return jax.device_put(array, P(*spec))

        heads = [put(array, *HEADS_SPLIT) for array in (q, k, v)]
        found = {
            form: np.asarray(make_attend(put(segments, BATCH), causal, form)(*heads))
            for form in ('masked', 'blocks')
        }
    for row, query, head in [(0, 5, 0), (1, 200, 3), (2, 63, 1), (2, 64, 2), (3, 255, 3)]:
        own = (segments[row] == segments[row, query]) & (
            (np.arange(LENGTH) <= query) | (not causal)
        )
        scores = k[row, own, head // 2] @ q[row, query, head] / WIDTH**0.5
        expected = np.exp(scores) @ v[row, own, head // 2] / np.exp(scores).sum()
        for form in found:
            np.testing.assert_allclose(found[form][row, query, head], expected, atol=1e-5)


@pytest.mark.parametrize('causal', [True, False])
def test_blocks_have_the_gradient_of_masked_attention(causal):
    (value, gradients), (expected, masked_gradients) = (
        compute_value_and_gradients(form, causal, (2, 2, 2)) for form in ('blocks', 'masked')
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-3)
    for gradient, masked in zip(gradients, masked_gradients, strict=True):
        np.testing.assert_allclose(gradient, masked, atol=2e-5)


@pytest.mark.parametrize('causal', [True, False])
def test_cudnn_call_matches_masked_attention(causal, monkeypatch):
    """Replaces cuDNN by XLA's implementation of the same function, because there is no GPU."""
    attention = jax.nn.dot_product_attention
    monkeypatch.setattr(
        jax.nn,
        'dot_product_attention',
        lambda *qkv, mask, implementation: attention(*qkv, mask=mask, implementation='xla'),
    )
    for window in [(), (30, True), (30, (True, False))]:
        asked, by_mask = (
            compute_value_and_gradients(form, causal, (2, 2, 2), *window)
            for form in ('cudnn', 'masked')
        )
        (value, gradients), (expected, masked_gradients) = asked, by_mask
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-3)
        for gradient, masked in zip(gradients, masked_gradients, strict=True):
            np.testing.assert_allclose(gradient, masked, atol=2e-5)


def test_step_lowered_for_gpus_calls_cudnn(monkeypatch):
    """Lowers for CUDA, forward and backward, without compiling, which needs a GPU.

    JAX's check of the cuDNN version needs a GPU too, so it is replaced.
    """
    for check, found in [
        ('check_cudnn_version', 91200),
        ('check_compute_capability', True),
        ('is_cuda_compute_capability_equal', False),
    ]:
        monkeypatch.setattr(fused_attention_stablehlo, check, lambda *_, found=found: found)
    mesh = make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):

        def array(shape, dtype, *spec):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, P(*spec)))

        heads, segments = (
            array((8, 256, 4, 64), jnp.bfloat16, *HEADS_SPLIT),
            array((8, 256), jnp.int32, BATCH),
        )

        def objective(q, k, v, s):
            return jnp.sum(make_attend(s, True, 'cudnn')(q, k, v).astype(jnp.float32) ** 2)

        traced = jax.jit(jax.grad(objective, argnums=(0, 1, 2))).trace(
            heads, heads, heads, segments
        )
        text = traced.lower(lowering_platforms=('cuda',)).as_text()
    assert 'fmhaScaleBiasSoftmax(' in text and 'fmhaScaleBiasSoftmaxBackward(' in text


def compile_for_tpu(form: str, rows: int, length: int) -> jax.stages.Compiled:
    from cpt_jax.plan.topology import get_topology_devices

    mesh = make_mesh(devices=get_topology_devices('v5e:2x2', 1))

    def array(shape, dtype, *spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, P(*spec)))

    with jax.set_mesh(mesh):
        heads = array((rows, length, 16, 64), jnp.bfloat16, *HEADS_SPLIT)

        def objective(q, k, v, s):
            return jnp.sum(make_attend(s, True, form)(q, k, v).astype(jnp.float32) ** 2)

        return (
            jax.jit(jax.grad(objective, argnums=(0, 1, 2)))
            .lower(heads, heads, heads, array((rows, length), jnp.int32, BATCH))
            .compile()
        )


def test_forward_pass_that_remat_repeats_stores_no_log_sums():
    """Each of two layers runs the kernel once without log-sum-exp, and in the backward pass once
    with it and once for each of the two gradients.
    """
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        heads = jax.ShapeDtypeStruct(
            (2, 256, 2, 64), jnp.bfloat16, sharding=jax.NamedSharding(mesh, P(*HEADS_SPLIT))
        )
        segments = jax.ShapeDtypeStruct(
            (2, 256), jnp.int32, sharding=jax.NamedSharding(mesh, P(BATCH))
        )

        def objective(h, s):
            layer = jax.checkpoint(lambda h: make_attend(s, True, 'splash')(h, h, h))
            return jnp.sum(layer(layer(h)).astype(jnp.float32) ** 2)

        traced = jax.jit(jax.grad(objective)).trace(heads, segments)
        text = traced.lower(lowering_platforms=('tpu',)).as_text()
    assert Counter(re.findall(r'splash_mha_\w+', text)) == {
        'splash_mha_fwd_segmented_no_residuals': 2,
        'splash_mha_fwd_segmented_residuals': 2,
        'splash_mha_dq_segmented_no_residuals': 2,
        'splash_mha_dkv_segmented_no_residuals': 2,
    }


def test_tpu_kernel_stores_no_scores(libtpu):
    """Compiles for v5e with head width 64 and long rows.

    Rows that the kernel cannot split into blocks fall back to masked attention.
    """
    scores = 4 * 16 * 2048 * 2048 * 4  # bytes of a device's float32 scores
    kernel, mask = (compile_for_tpu(form, 16, 2048) for form in ('splash', 'masked'))
    assert 'splash_mha_fwd' in kernel.as_text() and 'splash' not in mask.as_text()
    assert (
        kernel.memory_analysis().temp_size_in_bytes
        < scores / 4
        < scores
        < mask.memory_analysis().temp_size_in_bytes
    )
    assert 'splash' not in compile_for_tpu('splash', 32, 96).as_text()


@pytest.mark.parametrize(
    ('platform', 'kind', 'capability', 'expected'),
    [
        ('tpu', 'TPU v3', '', False),
        ('tpu', 'TPU v5 lite', '', True),
        ('gpu', 'Tesla V100-SXM2-16GB', '7.0', False),
        ('gpu', 'NVIDIA A100-SXM4-40GB', '8.0', True),
        ('gpu', 'NVIDIA RTX PRO 6000', '12.0', True),
        ('gpu', 'AMD Instinct MI300X', 'gfx942', False),
    ],
)
def test_devices_that_run_the_kernel(platform, kind, capability, expected):
    device = SimpleNamespace(platform=platform, device_kind=kind, compute_capability=capability)
    assert has_attention_kernel(device) == expected


def test_auto_attention_chooses_the_kernel_of_the_platform():
    sizes = {'vocab_size': 9, 'width': 16, 'layers': 1, 'max_length': 8}
    config = EncoderConfig(**sizes, heads=2)
    assert [config.resolve_auto(platform).attention for platform in ('tpu', 'gpu', 'cpu')] == [
        'splash',
        'cudnn',
        'blocks',
    ]
    assert (
        EncoderConfig(**sizes, heads=4).resolve_auto('gpu').attention
        == EncoderConfig(**sizes, heads=2, dtype='float32').resolve_auto('gpu').attention
        == 'masked'
    )
    assert {config.resolve_auto(name, False).attention for name in ('tpu', 'gpu')} == {'masked'}
    with pytest.raises(UserError, match='splash does not run on this device: it needs TPU v4'):
        EncoderConfig(**sizes, heads=2, attention='splash').resolve_auto('tpu', False)
    with pytest.raises(UserError, match='model.attention=splash is a kernel for TPUs'):
        EncoderConfig(**sizes, heads=2, attention='splash').resolve_auto('cpu')
    with pytest.raises(
        UserError, match='cudnn needs model.dtype=bfloat16 and model.head_width of 8'
    ):
        EncoderConfig(**sizes, heads=4, attention='cudnn').resolve_auto('gpu')
