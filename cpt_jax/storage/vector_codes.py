"""Quantization of vectors to int8 or to one bit per dimension, bit for bit as
`quantize_embeddings` of sentence-transformers 6.2.

    int8    the range of each dimension is divided into 256 equal steps; code -128 is the lowest.
            Values outside the range take the first or the last code.
    binary  bit d is 1 if dimension d is above 0. Eight bits are packed into a byte, of which 128 is
            subtracted, so that it is an int8 too.
"""

import numpy as np

PRECISIONS = 'float32', 'int8', 'binary'
_STEPS = 255
_LOWEST = -128


def compute_ranges(vectors_NxD: np.ndarray) -> np.ndarray:
    """Returns float32 [2, D]: minimum and maximum of each dimension, the calibration of int8."""
    return np.stack([vectors_NxD.min(axis=0), vectors_NxD.max(axis=0)]).astype(np.float32)


def quantize(
    vectors_NxD: np.ndarray, precision: str, ranges_2xD: np.ndarray | None = None
) -> np.ndarray:
    """Returns the codes of vectors: int8 [N, D], or [N, ceil(D / 8)] for 'binary'.

    Vectors of the precision 'float32' are returned as they are.

    Args:
      vectors_NxD: float32 vectors.
      precision: one of PRECISIONS.
      ranges_2xD: ranges from `compute_ranges`, for 'int8'.
    """
    if precision == 'float32':
        return vectors_NxD
    if precision == 'binary':
        return (pack_signs(vectors_NxD).astype(np.int16) + _LOWEST).astype(np.int8)
    assert ranges_2xD is not None
    starts_D, steps_D = _get_steps(ranges_2xD)
    levels_NxD = np.clip(np.floor((vectors_NxD - starts_D) / steps_D), 0, _STEPS)
    return (levels_NxD + _LOWEST).astype(np.int8)


def dequantize(codes_NxD: np.ndarray, ranges_2xD: np.ndarray) -> np.ndarray:
    """Returns float32 [N, D]: the lower end of the step of each int8 code."""
    starts_D, steps_D = _get_steps(ranges_2xD)
    return (codes_NxD.astype(np.float32) - _LOWEST) * steps_D + starts_D


def pack_signs(vectors_NxD: np.ndarray) -> np.ndarray:
    """Returns uint8 [N, ceil(D / 8)]: whether each dimension is above 0, as bits."""
    return np.packbits(vectors_NxD > 0, axis=-1)


def unpack_signs(codes_NxB: np.ndarray, width: int) -> np.ndarray:
    """Returns uint8 [N, D] of 0 and 1, from the codes of 'binary'.

    Args:
      codes_NxB: int8 codes from `quantize`.
      width: number of dimensions.
    """
    bits_NxB = (codes_NxB.astype(np.int16) - _LOWEST).astype(np.uint8)
    return np.unpackbits(bits_NxB, axis=-1, count=width)


def count_code_columns(width: int, precision: str) -> int:
    """Returns the number of columns of the codes of vectors with `width` dimensions."""
    return -(-width // 8) if precision == 'binary' else width


def _get_steps(ranges_2xD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lowest value and the size of a step of each dimension; 1 if all are equal."""
    starts_D = ranges_2xD[0].astype(np.float32)
    steps_D = (ranges_2xD[1].astype(np.float32) - starts_D) / _STEPS
    return starts_D, np.where(steps_D == 0, np.float32(1), steps_D)
