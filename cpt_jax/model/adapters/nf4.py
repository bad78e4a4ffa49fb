"""Frozen weights in fewer bits: NF4 with double quantisation (QLoRA, arXiv 2305.14314, section 3),
as bitsandbytes stores it, and int8.

qwix 0.1.8 puts adapters and codes in place while it intercepts a call of the model, which in a scan
over layers is within the loop's body, and its NF4 has no double quantisation: hence these lines. A
weight here is [*inputs, *outputs], and is kept as a matrix [inputs, outputs].
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

BLOCK = 64  # weights that share one absolute maximum: neighbours among the inputs of one output
# Absolute maxima that share one scale, in the order of torch's [outputs, blocks of inputs].
GROUP = 256
# bitsandbytes.functional.get_4bit_type('nf4'): quantiles of the normal distribution, and an exact
# zero (appendix E of the paper).
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
# To divide by where all weights of a block are zero; anything less XLA takes for zero.
_SMALLEST = 2.0**-126


@functools.cache
def dynamic_levels() -> np.ndarray:
    """float32[256], ascending: bitsandbytes.functional.create_dynamic_map(), the 8-bit numbers that
    absolute maxima are rounded to.

    Of 8 bits the first is a sign, leading zeros are a power of ten, and the rest splits what is
    between a tenth and one evenly (arXiv 1511.04561).
    """
    positive = [
        10.0 ** (power - 6) * (0.1 + 0.9 * (place + 0.5) / 2**power)
        for power in range(7)
        for place in range(2**power)
    ]
    return np.array(sorted([*positive, *(-value for value in positive), 0.0, 1.0]), np.float32)


class Codes(nnx.Module):
    """A frozen weight [*inputs, *outputs] as codes; NF4 and Int8 say which. In a stack of layers
    its arrays have one more axis in front.

    Of the inputs and of the outputs, only the first axis may be split over the mesh.
    """

    MATRIX_AXES: ClassVar[int]  # axes of `codes` of one layer
    codes: Frozen

    def __init__(self, weight: jax.Array, inputs: int):
        """Rounds float[*inputs, *outputs], whose first `inputs` axes are inputs, where it lies;
        call it under jax.jit.
        """
        self.inputs, self.outputs = weight.shape[:inputs], weight.shape[inputs:]
        spec = jax.typeof(weight).sharding.spec
        axes = spec[0], spec[inputs]
        sizes = math.prod(self.inputs), math.prod(self.outputs)
        self._round(
            jax.lax.reshape(weight.astype(jnp.float32), sizes, out_sharding=P(*axes)), *axes
        )

    def gathered(self, dtype: jnp.dtype, *spec: str | None) -> jax.Array:
        """The weight where it is used, in the compute dtype: the codes are gathered, and each
        device makes floats of its own.
        """
        matrix = self._matrix(spec[0], spec[len(self.inputs)]).astype(dtype)
        return jax.lax.reshape(matrix, (*self.inputs, *self.outputs), out_sharding=P(*spec))

    def whole(self) -> jax.Array:
        """float32[*inputs, *outputs], or of all layers of a stack, split over the mesh as the codes
        are.
        """
        spec = jax.typeof(self.codes[...]).sharding.spec
        rows, columns = spec[-self.MATRIX_AXES], spec[-1]
        inner = rows, *[None] * (len(self.inputs) - 1), columns, *[None] * (len(self.outputs) - 1)

        def one(codes):
            return codes.gathered(jnp.float32, *inner)

        return one(self) if self.codes[...].ndim == self.MATRIX_AXES else jax.lax.map(one, self)

    def _round(self, matrix: jax.Array, rows: str | None, columns: str | None) -> None:
        """Sets the arrays from a float32[I, O] that is split over these axes of the mesh."""
        raise NotImplementedError

    def _matrix(self, rows: str | None, columns: str | None) -> jax.Array:
        """float32[I, O], split over these axes."""
        raise NotImplementedError


class NF4(Codes):
    """4 bits a weight, and 8 for the absolute maximum of each 64: 0.516 bytes a weight.

    Attributes:
      codes: uint8[B, 32, O], for B blocks of inputs of each of O outputs: of its 64 weights the
        first 32 in the high bits, the others in the low ones, so that nothing is interleaved.
        bitsandbytes has neighbours in a byte.
      absmax: uint8[B, O], places in `dynamic_levels`.
      scales: float32[G], of groups of 256 absolute maxima; every device has all.
      offset: float32[], the mean of the absolute maxima, which is taken off before they are
        rounded.
    """

    MATRIX_AXES = 3

    def _round(self, matrix: jax.Array, rows: str | None, columns: str | None) -> None:
        parts_BxPxO = matrix.reshape(-1, BLOCK, matrix.shape[1])
        absmax_BxO = jnp.max(jnp.abs(parts_BxPxO), axis=1)
        parts_BxPxO = parts_BxPxO * (1 / jnp.maximum(absmax_BxO, _SMALLEST))[:, None]
        codes_BxPxO = sum((parts_BxPxO > middle).astype(jnp.uint8) for middle in _middles(LEVELS))
        self.codes = Frozen(codes_BxPxO[:, : BLOCK // 2] << 4 | codes_BxPxO[:, BLOCK // 2 :])
        absmax_BxO, scales_G, offset = _rounded(jax.reshard(absmax_BxO, P(None, None)))
        self.absmax = Frozen(jax.reshard(absmax_BxO, P(rows, columns)))
        self.scales, self.offset = Frozen(scales_G), Frozen(offset)

    def _matrix(self, rows: str | None, columns: str | None) -> jax.Array:
        codes_BxQxO = jax.reshard(self.codes[...], P(rows, None, columns))
        units_BxPxO = _looked_up(jnp.concatenate([codes_BxQxO >> 4, codes_BxQxO & 15], axis=1))
        levels_BxO = _dynamic(jax.reshard(self.absmax[...], P(rows, columns)))
        blocks, outputs = levels_BxO.shape
        scales_OxB = jnp.repeat(self.scales[...], GROUP)[: outputs * blocks].reshape(
            outputs, blocks
        )
        absmax_BxO = levels_BxO * jax.reshard(scales_OxB.T, P(rows, columns)) + self.offset[...]
        return (units_BxPxO * absmax_BxO[:, None]).reshape(-1, outputs)


class Int8(Codes):
    """8 bits a weight and one scale an output, as LLM.int8() has it for what is no outlier (arXiv
    2208.07339): 1.0 bytes a weight.

    Attributes:
      codes: int8[I, O].
      scales: float32[O], the absolute maximum of an output's weights / 127.
    """

    MATRIX_AXES = 2

    def _round(self, matrix: jax.Array, rows: str | None, columns: str | None) -> None:
        scales_O = jnp.maximum(jnp.max(jnp.abs(matrix), axis=0), _SMALLEST) / 127
        self.codes = Frozen(jnp.round(matrix / scales_O).astype(jnp.int8))
        self.scales = Frozen(scales_O)

    def _matrix(self, rows: str | None, columns: str | None) -> jax.Array:
        return jax.reshard(self.codes[...], P(rows, columns)) * jax.reshard(
            self.scales[...], P(columns)
        )


def stack_of(kind: type[Codes], weight: jax.Array, inputs: int) -> Codes:
    """The codes of float[N, *inputs, *outputs], one layer after the other."""
    return jax.lax.map(lambda layer: kind(layer, inputs), weight)


def _middles(levels: np.ndarray) -> np.ndarray:
    """Above which of these a number lies is the place of the nearest level."""
    return (levels[1:] + levels[:-1]) / 2


def _looked_up(codes: jax.Array) -> jax.Array:
    """float32 of LEVELS, by selections bit after bit: a gather of single numbers is slow on a
    TPU.
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


def _dynamic(places: jax.Array) -> jax.Array:
    """float32 of `dynamic_levels`, by its rule rather than by a gather; the same to a unit in the
    last place.
    """
    signed = places.astype(jnp.float32) - 127
    size = jnp.abs(signed)
    value = jnp.zeros_like(size)
    for power in range(7):
        value = jnp.where(
            size >= 2**power,
            10.0 ** (power - 6) * (0.1 + 0.9 * (size - 2**power + 0.5) / 2**power),
            value,
        )
    return jnp.sign(signed) * jnp.where(size == 128, 1.0, value)


def _rounded(absmax_BxO: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Absolute maxima, on every device -> their places in `dynamic_levels`, the scales of their
    groups, and the offset.
    """
    blocks, outputs = absmax_BxO.shape
    offset = jnp.mean(absmax_BxO)
    centred_A = (absmax_BxO.T - offset).reshape(-1)
    groups_GxA = jnp.pad(centred_A, (0, -len(centred_A) % GROUP)).reshape(-1, GROUP)
    scales_G = jnp.max(jnp.abs(groups_GxA), axis=1)
    units_GxA = groups_GxA * (1 / jnp.maximum(scales_G, _SMALLEST))[:, None]
    places_GxA = jnp.searchsorted(jnp.asarray(_middles(dynamic_levels())), units_GxA).astype(
        jnp.uint8
    )
    return places_GxA.reshape(-1)[: outputs * blocks].reshape(outputs, blocks).T, scales_G, offset
