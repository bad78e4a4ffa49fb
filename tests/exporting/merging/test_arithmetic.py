import numpy as np
import pytest

from cpt_jax.exporting.merging.arithmetic import merge_tensors, slerp

RNG = np.random.default_rng(0)
TENSORS = [RNG.standard_normal((3, 4)).astype(np.float32) for _ in range(3)]


def test_linear_is_the_weighted_mean():
    weights = 0.2, 0.5, 0.3
    expected = sum(w * t.astype(np.float64) for w, t in zip(weights, TENSORS, strict=True))
    merged = merge_tensors(iter(TENSORS), weights, 'linear')
    np.testing.assert_allclose(merged, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('share', [0, 0.25, 1])
def test_slerp_keeps_the_angles_and_norms(share):
    first, second = np.array([2.0, 0.0]), np.array([0.0, 2.0])
    angle = share * np.pi / 2
    expected = 2 * np.array([np.cos(angle), np.sin(angle)])
    np.testing.assert_allclose(slerp(first, second, share), expected, atol=1e-12)


def test_slerp_equals_its_formula_and_merges_one_part_after_the_other():
    """The formula is that of mergekit's `slerp`."""

    def compute(t, v0, v1):
        dot = np.sum(v0 / np.linalg.norm(v0) * (v1 / np.linalg.norm(v1)))
        theta = np.arccos(dot)
        s0 = np.sin(theta - theta * t) / np.sin(theta)
        return s0 * v0 + np.sin(theta * t) / np.sin(theta) * v1

    a, b, c = (tensor.astype(np.float64) for tensor in TENSORS)
    merged = merge_tensors(TENSORS, (0.2, 0.6, 0.2), 'slerp')
    np.testing.assert_allclose(merged, compute(0.2, compute(0.75, a, b), c), atol=1e-12)


def test_parallel_and_zero_tensors_are_merged_linearly():
    zero, tensor = np.zeros(3), np.arange(3.0)
    np.testing.assert_array_equal(slerp(zero, tensor, 0.5), tensor / 2)
    np.testing.assert_allclose(slerp(tensor, 3 * tensor, 0.5), 2 * tensor)
    np.testing.assert_array_equal(merge_tensors([np.ones(()), -np.ones(())], (1, 1), 'slerp'), 0)
