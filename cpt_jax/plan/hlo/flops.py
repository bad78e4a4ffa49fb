"""Counts the arithmetic of a compiled program: the multiplications and additions of its matrix
products and convolutions, times the trip counts of enclosing loops.
"""

import dataclasses
import functools
import math
import re

import numpy as np

from cpt_jax.plan.hlo.program import Array, HloError, Module
from cpt_jax.plan.hlo.walk import ExecutedInstruction, iterate_executed

# Kernels of JAX's splash attention -> number of matrix products, each with the cost of queries
# times keys. The second and third kernel recompute the logits. Blocks that are fully masked by a
# causal mask are skipped by the kernels, but counted here.
_ATTENTION_PRODUCTS = {'splash_mha_fwd': 2, 'splash_mha_dq': 3, 'splash_mha_dkv': 4}


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """The arithmetic of one device in one step.

    Attributes:
      total: floating-point operations.
      uncounted: targets of custom calls without a cost estimate, which are not in the total.
    """

    total: int
    uncounted: tuple[str, ...]


def count_flops(module: Module) -> StepFlops:
    """Counts the floating-point operations of one device in a step.

    Raises:
      HloError: see `iterate_executed`.
    """
    total = 0
    uncounted = {}
    for executed in iterate_executed(module):
        flops = count_own_flops(executed)
        total += executed.times * (flops or 0)
        if flops is None:
            uncounted[executed.kernel or ''] = True
    return StepFlops(total, tuple(uncounted))


def count_own_flops(executed: ExecutedInstruction) -> int | None:
    """Counts the operations of one execution of an instruction, without those that it calls.

    Returns:
      The operations, or None for a kernel without a cost estimate.
    """
    opcode = executed.instruction.opcode
    if opcode == 'convolution':
        return count_convolution_flops(executed)
    if opcode == 'dot':
        return count_dot_flops(executed)
    return _read_kernel_flops(executed) if executed.kernel else 0


def count_dot_flops(executed: ExecutedInstruction) -> int:
    """Counts the operations of a dot: two per element of the result and contracted element."""
    lhs, result = executed.get_operand_arrays(0)[0], executed.results[0]
    contracted = _parse_numbers(executed.instruction.get_attribute('lhs_contracting_dims') or '')
    return 2 * result.size * math.prod(lhs.dims[axis] for axis in contracted)


def count_convolution_flops(executed: ExecutedInstruction) -> int:
    """Counts the operations of a convolution, as XLA's HloCostAnalysis does: products with padding,
    or with the holes of a dilated input, are not counted.

    On TPUs, matrix products are compiled to convolutions, whose spatial dimensions are batch or
    contracted dimensions.
    """
    lhs, rhs = executed.get_operand_arrays(0)[0], executed.get_operand_arrays(1)[0]
    labels = executed.instruction.get_attribute('dim_labels') or ''
    match = re.fullmatch(r'(\w+)_(\w+)->(\w+)', labels)
    if not match:
        raise HloError(f'{executed.instruction.name} has unknown dim_labels: {labels!r}')
    inputs, kernel, output = match.groups()
    window = _parse_window(executed.instruction.get_attribute('window') or '')
    groups = int(executed.instruction.get_attribute('feature_group_count') or 1)
    batch_groups = int(executed.instruction.get_attribute('batch_group_count') or 1)
    valid = 1
    for axis, label in enumerate(sorted(label for label in kernel if label.isdigit())):
        sizes = (
            _get_size(lhs, inputs, label),
            _get_size(rhs, kernel, label),
            _get_size(executed.results[0], output, label),
        )
        valid *= count_valid_positions(*sizes, *(numbers[axis] for numbers in window.values()))
    features = _get_size(lhs, inputs, 'f') // groups * _get_size(executed.results[0], output, 'f')
    return 2 * features * (_get_size(lhs, inputs, 'b') // batch_groups) * valid


@functools.lru_cache(maxsize=4096)
def count_valid_positions(
    inputs: int,
    kernel: int,
    outputs: int,
    stride: int,
    low: int,
    input_dilation: int,
    kernel_dilation: int,
) -> int:
    """Counts the pairs (kernel index, output index) along one axis that read an input element, and
    not padding or a hole of the dilated input.

    Args:
      inputs: size of the input.
      kernel: size of the kernel.
      outputs: size of the output.
      stride: step between windows.
      low: padding before the first element.
      input_dilation: distance of neighboring input elements; above 1 there are holes.
      kernel_dilation: distance of neighboring kernel elements.
    """
    window_starts = np.arange(outputs, dtype=np.int64) * stride - low
    total = 0
    for kernel_index in range(kernel):
        positions = window_starts + kernel_index * kernel_dilation
        is_inside = (positions >= 0) & (positions <= (inputs - 1) * input_dilation)
        total += int(np.count_nonzero(is_inside & (positions % input_dilation == 0)))
    return total


def _parse_window(text: str) -> dict[str, list[int]]:
    """Returns stride, padding before, input and kernel dilation, as lists over spatial axes."""
    fields = dict(part.split('=') for part in text.split()) if text else {}
    axes = len(fields['size'].split('x')) if 'size' in fields else 0
    ones = 'x'.join(['1'] * axes)
    no_padding = 'x'.join(['0_0'] * axes)

    def parse_field(key: str) -> list[int]:
        return [int(number) for number in fields.get(key, ones).split('x') if number]

    padding = fields.get('pad', no_padding).split('x')
    return {
        'stride': parse_field('stride'),
        'low': [int(pad.split('_')[0]) for pad in padding if pad],
        'input_dilation': parse_field('lhs_dilate'),
        'kernel_dilation': parse_field('rhs_dilate'),
    }


def _get_size(array: Array, labels: str, label: str) -> int:
    return array.dims[labels.index(label)]


def _read_kernel_flops(executed: ExecutedInstruction) -> int | None:
    """Returns the operations of a kernel, from its name or its Pallas cost estimate; None if
    neither is known.
    """
    for name, products in _ATTENTION_PRODUCTS.items():
        if executed.instruction.name.startswith(name):
            return products * _count_attention_product_flops(executed)
    match = re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', executed.instruction.attributes)
    return int(match[1]) if match else None


def _count_attention_product_flops(executed: ExecutedInstruction) -> int:
    """Counts one product of all queries with all keys."""
    queries, keys = _find_queries_and_keys(executed)
    return 2 * queries.size * keys.dims[-1 if _has_sequence_last(executed, 'k') else -2]


def get_head_width(executed: ExecutedInstruction) -> int:
    """Returns the dimension of the heads of an attention kernel; 0 for other instructions."""
    if not executed.instruction.name.startswith(tuple(_ATTENTION_PRODUCTS)):
        return 0
    if executed.instruction.opcode != 'custom-call':
        return 0
    queries, _ = _find_queries_and_keys(executed)
    return queries.dims[-2 if _has_sequence_last(executed, 'q') else -1]


def _find_queries_and_keys(executed: ExecutedInstruction) -> tuple[Array, Array]:
    """Returns the queries and keys of an attention kernel.

    They are its first two floating-point operands with more than two dimensions: [..., H, S, K]
    each, or [..., H, K, S].
    """
    large = (
        array
        for index in range(len(executed.instruction.operands))
        for array in executed.get_operand_arrays(index)
        if len(array.dims) > 2
    )
    queries, keys = [array for array in large if array.dtype in ('bf16', 'f32')][:2]
    return queries, keys


def _has_sequence_last(executed: ExecutedInstruction, operand: str) -> bool:
    """Returns whether operand 'q' or 'k' of an attention kernel has the layout that its metadata
    numbers 2. Among the programs of this repository, only benchmarks/attention_kernels.py has it.
    """
    pattern = rf'{operand}_layout\\*": *2'
    return re.search(pattern, executed.instruction.attributes) is not None


def _parse_numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(',') if number]
    except ValueError as error:
        raise HloError(f'not a list of numbers: {text}') from error
