"""The arithmetic of a compiled program: the multiplications and additions of its matrix products
and convolutions, loops multiplied out.
"""

import dataclasses
import functools
import math
import re

import numpy as np

from cpt_jax.plan.hlo.program import Array, HloError, Module
from cpt_jax.plan.hlo.walk import Executed, executed

# JAX's splash attention: matrix products of queries with keys, or of their like, in each of its
# kernels. The second and third compute the scores again. Blocks that a causal mask hides are
# skipped by the kernel and counted here.
_ATTENTION_PRODUCTS = {'splash_mha_fwd': 2, 'splash_mha_dq': 3, 'splash_mha_dkv': 4}


@dataclasses.dataclass(frozen=True)
class Flops:
    """Of one device and step.

    Attributes:
      total: floating-point operations.
      uncounted: custom calls that do not say what they compute, by target; not in the total.
    """

    total: int
    uncounted: tuple[str, ...]


def count_flops(module: Module) -> Flops:
    """Counts a whole step.

    Raises:
      HloError: see `executed`.
    """
    total, uncounted = 0, {}
    for step in executed(module):
        opcode = step.instruction.opcode
        if opcode == 'convolution':
            total += step.times * convolution_flops(step)
        elif opcode == 'dot':
            total += step.times * dot_flops(step)
        elif step.kernel:
            known = _said_by_kernel(step)
            total += step.times * (known or 0)
            if known is None:
                uncounted[step.kernel] = True
    return Flops(total, tuple(uncounted))


def dot_flops(step: Executed) -> int:
    """Two for each element of the result and each place that is summed over."""
    lhs, result = step.operand_arrays(0)[0], step.results[0]
    summed = _numbers(step.instruction.attribute('lhs_contracting_dims') or '')
    return 2 * result.size * math.prod(lhs.dims[axis] for axis in summed)


def convolution_flops(step: Executed) -> int:
    """Counts as XLA's HloCostAnalysis does: a product with padding, or with a hole of a dilated
    input, is none.

    Matrix products are convolutions on TPUs, with batch and contracted axes dressed up as windows.
    """
    lhs, rhs = step.operand_arrays(0)[0], step.operand_arrays(1)[0]
    labels = step.instruction.attribute('dim_labels') or ''
    found = re.fullmatch(r'(\w+)_(\w+)->(\w+)', labels)
    if not found:
        raise HloError(f'{step.instruction.name} has unknown dim_labels: {labels!r}')
    inputs, kernel, output = found.groups()
    window = _window(step.instruction.attribute('window') or '')
    groups = int(step.instruction.attribute('feature_group_count') or 1)
    batch_groups = int(step.instruction.attribute('batch_group_count') or 1)
    valid = 1
    for axis, place in enumerate(sorted(label for label in kernel if label.isdigit())):
        sizes = (
            _size(lhs, inputs, place),
            _size(rhs, kernel, place),
            _size(step.results[0], output, place),
        )
        valid *= valid_positions(*sizes, *(numbers[axis] for numbers in window.values()))
    features = _size(lhs, inputs, 'f') // groups * _size(step.results[0], output, 'f')
    return 2 * features * (_size(lhs, inputs, 'b') // batch_groups) * valid


@functools.lru_cache(maxsize=4096)
def valid_positions(
    inputs: int,
    kernel: int,
    outputs: int,
    stride: int,
    low: int,
    input_dilation: int,
    kernel_dilation: int,
) -> int:
    """Pairs of a kernel's and an output's place, along one axis, that meet an element of the
    input.
    """
    steps = np.arange(outputs, dtype=np.int64) * stride - low
    total = 0
    for place in range(kernel):
        at = steps + place * kernel_dilation
        total += int(
            np.count_nonzero(
                (at >= 0) & (at <= (inputs - 1) * input_dilation) & (at % input_dilation == 0)
            )
        )
    return total


def _window(text: str) -> dict[str, list[int]]:
    """Of each spatial axis: stride, padding before, dilation of the input and of the kernel."""
    found = dict(part.split('=') for part in text.split()) if text else {}
    axes = len(found.get('size', '').split('x')) if 'size' in found else 0
    default = 'x'.join(['1'] * axes)
    padding = found.get('pad', 'x'.join(['0_0'] * axes)).split('x')
    return {
        'stride': [int(n) for n in found.get('stride', default).split('x') if n],
        'low': [int(pad.split('_')[0]) for pad in padding if pad],
        'input_dilation': [int(n) for n in found.get('lhs_dilate', default).split('x') if n],
        'kernel_dilation': [int(n) for n in found.get('rhs_dilate', default).split('x') if n],
    }


def _size(array: Array, labels: str, label: str) -> int:
    return array.dims[labels.index(label)]


def _said_by_kernel(step: Executed) -> int | None:
    """Pallas' cost estimate; None where there is none."""
    for name, products in _ATTENTION_PRODUCTS.items():
        if step.instruction.name.startswith(name):
            return products * _attention_flops(step)
    said = re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', step.instruction.attributes)
    return int(said[1]) if said else None


def _attention_flops(step: Executed) -> int:
    """Of one product of all queries with all keys, [.., H, S, K] each: the kernel's first large
    operands.
    """
    large = (
        array
        for index in range(len(step.instruction.operands))
        for array in step.operand_arrays(index)
        if len(array.dims) > 2
    )
    queries, keys = [array for array in large if array.dtype in ('bf16', 'f32')][:2]
    return 2 * queries.size * keys.dims[-2]


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(',') if number]
    except ValueError as error:
        raise HloError(f'not a list of numbers: {text}') from error
