"""Compares the attention kernel of the devices with masked attention, in bfloat16."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from cpt_jax.model.attention import make_attend
from cpt_jax.pod.acceptance.check import SKIPPED, Check, compare
from cpt_jax.runtime.hardware import has_attention_kernel
from cpt_jax.runtime.mesh import BATCH, make_mesh

_HEADS, _WIDTH = 4, 64
# Relative to the largest value. bfloat16 has 8 bits: one rounding is at most 0.4 % of a value.
_BOUND = 0.02
_KERNELS = {'tpu': 'splash', 'gpu': 'cudnn', 'cpu': 'interpreted'}


class Attended(NamedTuple):
    """Results of attention: float32 output and gradients with respect to q, k and v."""

    output: np.ndarray
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray


def check_attention(length: int) -> list[Check]:
    """Returns the checks of the kernel on all devices, for causal and bidirectional attention.

    Args:
      length: columns of a row, a multiple of 128.
    """
    device = jax.devices()[0]
    kernel = _KERNELS[device.platform]
    if not has_attention_kernel(device):
        reason = f'there is no attention kernel for {device.device_kind}'
        return [Check('attention kernel', SKIPPED, '', reason)]
    checks = []
    for causal in (True, False):
        found = _attend(kernel, causal, length, jnp.bfloat16)
        expected = _attend('masked', causal, length, jnp.float32)
        kind = 'causal' if causal else 'bidirectional'
        for name in Attended._fields:
            error = _compute_error(getattr(found, name), getattr(expected, name))
            what = 'output' if name == 'output' else f'gradient of {name}'
            label = f'{kernel} attention, {kind}: error of the {what}'
            checks.append(compare(label, error, _BOUND))
    return checks


def _compute_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _attend(form: str, causal: bool, length: int, dtype: Any) -> Attended:
    """Computes attention within texts of random lengths, and its gradients."""
    mesh = make_mesh()
    rows = 2 * mesh.size
    random = np.random.default_rng(0)
    shape = (rows, length, _HEADS, _WIDTH)
    q, k, v, weights = (random.normal(size=shape).astype(np.float32) for _ in range(4))
    segments = np.sort(random.integers(1, 5, (rows, length)), axis=1).astype(np.int32)
    with jax.set_mesh(mesh):
        heads = jax.NamedSharding(mesh, P(BATCH, None, 'tensor'))

        def place(array: np.ndarray, sharding: jax.NamedSharding) -> jax.Array:
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

        segments_RxS = place(segments, jax.NamedSharding(mesh, P(BATCH)))
        # Both forms get the same numbers, those of bfloat16.
        inputs = [place(array, heads).astype(jnp.bfloat16).astype(dtype) for array in (q, k, v)]
        weights_RxSxHxK = place(weights, heads)

        def compute(segments_RxS, weights_RxSxHxK, *qkv):
            def objective(*qkv):
                out = make_attend(segments_RxS, causal, form)(*qkv).astype(jnp.float32)
                return jnp.sum(weights_RxSxHxK * out), out

            gradients, out = jax.grad(objective, argnums=(0, 1, 2), has_aux=True)(*qkv)
            return out, *(gradient.astype(jnp.float32) for gradient in gradients)

        results = jax.jit(compute)(segments_RxS, weights_RxSxHxK, *inputs)
        # Each process compares its own rows.
        own = (np.concatenate([s.data for s in array.addressable_shards]) for array in results)
        return Attended(*own)
