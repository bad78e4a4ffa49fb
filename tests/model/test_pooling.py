"""Mean pooling over packed rows, compared with a loop over texts."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cpt_jax.model.pooling import average_texts
from cpt_jax.runtime.mesh import BATCH, make_mesh

# Lengths of the texts in each row; a row has 8 columns. Each device has two rows and 4 texts.
LENGTHS = [[3, 4], [8], [1, 1, 2, 4], [], [2], [5, 3], [6], [1, 7]] * 2


@pytest.mark.parametrize('devices', [1, 8])
def test_mean_and_its_gradient_equal_a_loop_over_texts(devices):
    rows_per_device = len(LENGTHS) // devices
    texts_per_device = 4 * rows_per_device
    random = np.random.default_rng(0)
    h_RxSxD = random.normal(size=(16, 8, 3)).astype(np.float32)
    weights_BxTxD = random.normal(size=(devices, texts_per_device, 3)).astype(np.float32)
    segments_RxS = np.zeros((16, 8), np.int32)
    eos_BxT = np.zeros((devices, texts_per_device), np.int32)
    mean_BxTxD = np.zeros_like(weights_BxTxD)
    gradient_RxSxD = np.zeros_like(h_RxSxD)
    for device in range(devices):
        text = 0
        for row in range(device * rows_per_device, (device + 1) * rows_per_device):
            start = 0
            for length in LENGTHS[row]:
                own = slice(start, start := start + length)
                segments_RxS[row, own] = text + 1
                eos_BxT[device, text] = 8 * (row - device * rows_per_device) + start - 1
                mean_BxTxD[device, text] = h_RxSxD[row, own].mean(0)
                gradient_RxSxD[row, own] = weights_BxTxD[device, text] / length
                text += 1
        weights_BxTxD[device, text:] = 0  # there are no such texts
        mean_BxTxD[device, text:] = 0
    mesh = make_mesh(data=devices, devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
        h, segments, eos, weights = (
            jax.device_put(array, NamedSharding(mesh, P(BATCH)))
            for array in (h_RxSxD, segments_RxS, eos_BxT, weights_BxTxD)
        )
        mean, differentiate = jax.vjp(lambda h: average_texts(h, segments, eos), h)
        (gradient,) = differentiate(weights)
    mean = np.where((weights_BxTxD == 0), 0, mean)
    np.testing.assert_allclose(mean, mean_BxTxD, atol=1e-6)
    np.testing.assert_allclose(gradient, gradient_RxSxD, atol=1e-6)
