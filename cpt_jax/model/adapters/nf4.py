"""Quantized frozen weights: NF4 with double quantization (QLoRA, arXiv 2305.14314, section 3), as
in bitsandbytes, and int8.

Why not qwix 0.1.8: it inserts adapters and codes while it intercepts a call of the model, which in
a scan over layers happens inside the loop body; and its NF4 has no double quantization. A weight is
[*inputs, *outputs], and is stored as a matrix [inputs, outputs].
"""

import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from cpt_jax.model.parameter import Frozen

BLOCK = 64  # weights per block: consecutive inputs of one output, with one absolute maximum
# Absolute maxima per group, which has one scale, in the order of torch's [outputs, blocks of
# inputs].
GROUP = 256
# bitsandbytes.functional.get_4bit_type('nf4'): quantiles of the normal distribution and an exact
# zero (QLoRA paper, appendix E).
LEVELS = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
# Divisor for a block of zeros. XLA flushes smaller (subnormal) numbers to zero.
_SMALLEST = 2.0**-126


@functools.cache
def make_dynamic_levels() -> np.ndarray:
    """Returns the 256 levels that absolute maxima are rounded to, float32 in ascending order.

    They are those of bitsandbytes.functional.create_dynamic_map(): the first bit is the sign, the
    leading zeros give a power of ten, and the remaining bits divide the interval from 0.1 to 1
    evenly (arXiv 1511.04561).
    """
    positive = [
        10.0 ** (power - 6) * (0.1 + 0.9 * (step + 0.5) / 2**power)
        for power in range(7)
        for step in range(2**power)
    ]
    return np.array(sorted([*positive, *(-value for value in positive), 0.0, 1.0]), np.float32)


class QuantizedMatrix(nnx.Module):
    """A frozen weight [*inputs, *outputs] stored as codes; base class of NF4 and Int8.

    In a stack of layers all arrays have one more leading axis. Only the first input axis and the
    first output axis may be split over the mesh.
    """

    MATRIX_AXES: ClassVar[int]  # number of axes of `codes` in one layer
    codes: Frozen

    def __init__(self, weight: jax.Array, inputs: int):
        """Quantizes a weight, keeping its sharding; call it under jax.jit.

        Args:
          weight: float[*inputs, *outputs].
          inputs: number of input axes.
        """
        self.inputs, self.outputs = weight.shape[:inputs], weight.shape[inputs:]
        spec = jax.typeof(weight).sharding.spec
        axes = spec[0], spec[inputs]
        sizes = math.prod(self.inputs), math.prod(self.outputs)
        self._quantize(
            jax.lax.reshape(weight.astype(jnp.float32), sizes, out_sharding=P(*axes)), *axes
        )

    def gather(self, dtype: jnp.dtype, *spec: str | None) -> jax.Array:
        """Gathers the codes and dequantizes them on each device.

        Args:
          dtype: dtype of the result.
          spec: mesh axis of each axis of the result.
        """
        matrix = self._dequantize_matrix(spec[0], spec[len(self.inputs)]).astype(dtype)
        return jax.lax.reshape(matrix, (*self.inputs, *self.outputs), out_sharding=P(*spec))

    def dequantize(self) -> jax.Array:
        """Returns the weight, float32[*inputs, *outputs], with the sharding of the codes.

        For a stack, the result has one more leading axis, for its layers.
        """
        spec = jax.typeof(self.codes[...]).sharding.spec
        rows, columns = spec[-self.MATRIX_AXES], spec[-1]
        inner = rows, *[None] * (len(self.inputs) - 1), columns, *[None] * (len(self.outputs) - 1)

        def dequantize_layer(codes):
            return codes.gather(jnp.float32, *inner)

        is_stack = self.codes[...].ndim > self.MATRIX_AXES
        return jax.lax.map(dequantize_layer, self) if is_stack else dequantize_layer(self)

    def _quantize(self, matrix: jax.Array, rows: str | None, columns: str | None) -> None:
        """Sets the arrays from a float32[I, O] matrix that is split over these mesh axes."""
        raise NotImplementedError

    def _dequantize_matrix(self, rows: str | None, columns: str | None) -> jax.Array:
        """Returns the float32[I, O] matrix, split over these mesh axes."""
        raise NotImplementedError


class NF4(QuantizedMatrix):
    """NF4 codes: 4 bits per weight and 8 bits per block of 64 weights, 0.516 bytes per weight.

    Attributes:
      codes: uint8[B, 32, O] for B blocks of inputs and O outputs. The first 32 weights of a block
        are in the high bits and the last 32 in the low bits, so that decoding concatenates instead
        of interleaving. (bitsandbytes puts neighbours into one byte.)
      absmax: uint8[I, O], indices of the absolute maxima in `make_dynamic_levels`.
      scales: float32[U], scales of groups of 256 absolute maxima; replicated on every device.
      offset: float32[], mean of the absolute maxima, subtracted before they are rounded.
    """

    MATRIX_AXES = 3

    def _quantize(self, matrix: jax.Array, rows: str | None, columns: str | None) -> None:
        parts_IxPxO = matrix.reshape(-1, BLOCK, matrix.shape[1])  # P: position in a block
        absmax_IxO = jnp.max(jnp.abs(parts_IxPxO), axis=1)
        parts_IxPxO = parts_IxPxO * (1 / jnp.maximum(absmax_IxO, _SMALLEST))[:, None]
        # The index of the nearest level is the number of midpoints below the value.
        codes_IxPxO = sum(
            (parts_IxPxO > midpoint).astype(jnp.uint8) for midpoint in _compute_midpoints(LEVELS)
        )
        self.codes = Frozen(codes_IxPxO[:, : BLOCK // 2] << 4 | codes_IxPxO[:, BLOCK // 2 :])
        absmax_IxO, scales_U, offset = _quantize_absmax(jax.reshard(absmax_IxO, P(None, None)))
        self.absmax = Frozen(jax.reshard(absmax_IxO, P(rows, columns)))
        self.scales, self.offset = Frozen(scales_U), Frozen(offset)

    def _dequantize_matrix(self, rows: str | None, columns: str | None) -> jax.Array:
        codes_IxWxO = jax.reshard(self.codes[...], P(rows, None, columns))
        units_IxPxO = _dequantize_levels(
            jnp.concatenate([codes_IxWxO >> 4, codes_IxWxO & 15], axis=1)
        )
        levels_IxO = _dequantize_absmax_indices(jax.reshard(self.absmax[...], P(rows, columns)))
        blocks, outputs = levels_IxO.shape
        scales_OxI = jnp.repeat(self.scales[...], GROUP)[: outputs * blocks].reshape(
            outputs, blocks
        )
        absmax_IxO = levels_IxO * jax.reshard(scales_OxI.T, P(rows, columns)) + self.offset[...]
        return (units_IxPxO * absmax_IxO[:, None]).reshape(-1, outputs)


class Int8(QuantizedMatrix):
    """Int8 codes: 8 bits per weight and one scale per output, 1.0 bytes per weight, as LLM.int8()
    (arXiv 2208.07339) does for all but the outliers.

    Attributes:
      codes: int8[I, O].
      scales: float32[O], absolute maximum of the weights of an output / 127.
    """

    MATRIX_AXES = 2

    def _quantize(self, matrix: jax.Array, rows: str | None, columns: str | None) -> None:
        scales_O = jnp.maximum(jnp.max(jnp.abs(matrix), axis=0), _SMALLEST) / 127
        self.codes = Frozen(jnp.round(matrix / scales_O).astype(jnp.int8))
        self.scales = Frozen(scales_O)

    def _dequantize_matrix(self, rows: str | None, columns: str | None) -> jax.Array:
        return jax.reshard(self.codes[...], P(rows, columns)) * jax.reshard(
            self.scales[...], P(columns)
        )


def quantize_stack(kind: type[QuantizedMatrix], weight: jax.Array, inputs: int) -> QuantizedMatrix:
    """Quantizes float[L, *inputs, *outputs], one layer after the other."""
    return jax.lax.map(lambda layer: kind(layer, inputs), weight)


def _compute_midpoints(levels: np.ndarray) -> np.ndarray:
    """Returns the midpoints between levels: `searchsorted` into them gives the nearest level."""
    return (levels[1:] + levels[:-1]) / 2


def _dequantize_levels(codes: jax.Array) -> jax.Array:
    """Returns the float32 LEVELS of 4-bit codes.

    The level is selected bit by bit, because a gather of single numbers is slow on a TPU.
    """
    is_set = (codes & 1) != 0
    values = [
        jnp.where(is_set, high, low) for low, high in zip(LEVELS[::2], LEVELS[1::2], strict=True)
    ]
    for bit in (2, 4, 8):
        is_set = (codes & bit) != 0
        values = [
            jnp.where(is_set, high, low)
            for low, high in zip(values[::2], values[1::2], strict=True)
        ]
    return values[0]


def _dequantize_absmax_indices(indices: jax.Array) -> jax.Array:
    """Returns the float32 values of indices into `make_dynamic_levels`.

    The formula is evaluated instead of gathering from the table. The values agree with the table to
    one unit in the last place.
    """
    signed = indices.astype(jnp.float32) - 127
    size = jnp.abs(signed)
    value = jnp.zeros_like(size)
    for power in range(7):
        value = jnp.where(
            size >= 2**power,
            10.0 ** (power - 6) * (0.1 + 0.9 * (size - 2**power + 0.5) / 2**power),
            value,
        )
    return jnp.sign(signed) * jnp.where(size == 128, 1.0, value)


def _quantize_absmax(absmax_IxO: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Quantizes absolute maxima, which are replicated on every device.

    Returns:
      The indices in `make_dynamic_levels`, uint8[I, O]; the scales of the groups, float32[U]; and
        the offset, float32[].
    """
    blocks, outputs = absmax_IxO.shape
    offset = jnp.mean(absmax_IxO)
    centred_A = (absmax_IxO.T - offset).reshape(-1)
    groups_UxA = jnp.pad(centred_A, (0, -len(centred_A) % GROUP)).reshape(-1, GROUP)
    scales_U = jnp.max(jnp.abs(groups_UxA), axis=1)
    units_UxA = groups_UxA * (1 / jnp.maximum(scales_U, _SMALLEST))[:, None]
    indices_UxA = jnp.searchsorted(
        jnp.asarray(_compute_midpoints(make_dynamic_levels())), units_UxA
    ).astype(jnp.uint8)
    return indices_UxA.reshape(-1)[: outputs * blocks].reshape(outputs, blocks).T, scales_U, offset
