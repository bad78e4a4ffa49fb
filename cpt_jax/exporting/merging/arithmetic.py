"""Weighted means of tensors: linear, and on the sphere (slerp)."""

from collections.abc import Iterable, Sequence

import numpy as np

METHODS = 'linear', 'slerp'
# Above this cosine, the arc is so flat that slerp would divide by a number near 0 (as in mergekit).
_PARALLEL = 0.9995


def merge_tensors(
    tensors: Iterable[np.ndarray], weights: Sequence[float], method: str
) -> np.ndarray:
    """Returns the merged tensor in float64; holds two tensors at a time.

    Several tensors are merged one after the other: the mean of the first n is moved towards the
    next by its share of the n + 1 weights. For 'linear', this is the weighted mean.

    Args:
      tensors: arrays of one shape.
      weights: weight of each, 0 or more; the first is above 0.
      method: one of METHODS. A tensor with a single element is always merged linearly.
    """
    merged: np.ndarray | None = None
    total = 0.0
    for tensor, weight in zip(tensors, weights, strict=True):
        total += weight
        tensor = tensor.astype(np.float64)
        if merged is None:
            merged = tensor
        elif method == 'slerp' and tensor.size > 1:
            merged = slerp(merged, tensor, weight / total)
        else:
            merged += (tensor - merged) * (weight / total)
    assert merged is not None
    return merged


def slerp(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """Returns the point at `share` (0: first, 1: second) of the arc between two tensors.

    Tensors are taken as vectors. Their norms are not changed before, so that the result has a norm
    between theirs. Tensors that are nearly parallel, or 0, are merged linearly.
    """
    norms = np.linalg.norm(first) * np.linalg.norm(second)
    cosine = np.clip(np.vdot(first, second) / norms, -1, 1) if norms else 1.0
    if abs(cosine) > _PARALLEL:
        return first + (second - first) * share
    angle = np.arccos(cosine)
    return (np.sin((1 - share) * angle) * first + np.sin(share * angle) * second) / np.sin(angle)
