"""The memory that a compiled program needs, and its traffic to main memory.

The traffic is a lower bound: the bytes that each instruction must read and write at least once,
without padding.
"""

import re

import jax

from cpt_jax.plan.hlo.program import Computation, HloError, Instruction, Module, flatten_shape
from cpt_jax.plan.hlo.walk import ExecutedInstruction, count_hbm_bytes, iterate_executed

_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
# Out-of-memory messages of the current libtpu, and of libtpu in issue reports from 2022 to 2025.
_OUT_OF_MEMORY = (
    r'memory required for HLO temporaries \(([\d.]+)([KMGT]?)',
    r'Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm',
)

# Opcodes that move no data themselves.
_NO_TRAFFIC = {
    'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional',
    'call', 'after-all', 'partition-id',
    'replica-id', 'iota', 'async-start', 'async-update', 'async-done', 'call-start', 'call-done',
    'copy-done', 'slice-done',
    'dynamic-slice-done', 'all-gather-done', 'all-reduce-done', 'reduce-scatter-done',
    'all-to-all-done', 'collective-permute-done',
    'send', 'send-done', 'recv', 'recv-done', 'optimization-barrier', 'opt-barrier',
    'add-dependency',
}  # fmt: skip
_SLICES = {'slice', 'dynamic-slice', 'gather'}


def count_needed_bytes(compiled: jax.stages.Compiled) -> int:
    """Returns the bytes of memory per device that a program needs to run.

    It is the sum of the code and of the peak of arguments, results and temporaries, which the
    compiler compares with the limit. The separate sizes that `memory_analysis` also reports add up
    to more than this peak, because temporaries share memory.
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise HloError('the compiler does not report the memory of its program')
    return analysis.peak_memory_in_bytes + analysis.generated_code_size_in_bytes


def parse_refused_bytes(error: Exception) -> int | None:
    """Returns the bytes per device that the compiler asked for, from its error message; None if the
    error has another reason.
    """
    text = str(error)
    if 'RESOURCE_EXHAUSTED' not in text:
        return None
    for pattern in _OUT_OF_MEMORY:
        match = re.search(pattern, text)
        if match:
            return int(float(match[1]) * _UNITS[match[2]])
    return None


def count_traffic(module: Module) -> int:
    """Returns the bytes that one device reads from and writes to its main memory in a step.

    Raises:
      HloError: see `iterate_executed`.
    """
    return sum(
        executed.times * count_moved_bytes(executed)
        for executed in iterate_executed(module)
        if not executed.fused
    )


def count_moved_bytes(executed: ExecutedInstruction) -> int:
    """Returns the bytes that one execution of an instruction outside of fusions moves."""
    instruction = executed.instruction
    opcode = instruction.opcode.removesuffix('-start')
    if instruction.opcode in _NO_TRAFFIC or executed.is_bookkeeping:
        return 0
    if opcode == 'fusion':
        inner = executed.frame.module.computations[instruction.get_called_names('calls')[0]]
        return _count_fusion_reads(executed, inner) + _count_writes(inner, inner.root, instruction)
    if opcode in _SLICES:
        # Only the selected part of the operand is read.
        read = executed.results[0].bytes if count_hbm_bytes(executed.get_operand_arrays(0)) else 0
        return read + count_hbm_bytes(executed.results)
    if opcode == 'dynamic-update-slice':
        return count_hbm_bytes(executed.get_operand_arrays(1)) + (
            executed.get_operand_arrays(1)[0].bytes if count_hbm_bytes(executed.results) else 0
        )
    if opcode == 'scatter':
        # Reads the indices, the updates and the old values; writes the new values.
        return count_hbm_bytes(executed.get_operand_arrays(1)) + 3 * count_hbm_bytes(
            executed.get_operand_arrays(2)
        )
    return sum(
        count_hbm_bytes(executed.get_operand_arrays(index))
        for index in range(len(instruction.operands))
    ) + count_hbm_bytes(executed.results)


def _count_fusion_reads(executed: ExecutedInstruction, inner: Computation) -> int:
    total = 0
    for index, parameter in enumerate(inner.parameters):
        whole = count_hbm_bytes(executed.get_operand_arrays(index))
        if whole:
            total += min(whole, _count_reads(inner, parameter, executed))
    return total


def _count_reads(
    computation: Computation, source: Instruction, executed: ExecutedInstruction
) -> int:
    """Returns how many bytes of `source` its users read inside a fusion: the bytes of the slices if
    every user slices it, else the size of the whole array.
    """
    whole = sum(array.bytes for array in flatten_shape(source.shape))
    total = 0
    for reader in computation.users[source.name]:
        if reader.opcode in _SLICES and reader.operands[0] == source.name:
            total += sum(array.bytes for array in flatten_shape(reader.shape))
        elif reader.opcode == 'bitcast':
            total += _count_reads(computation, reader, executed)
        elif reader.opcode == 'fusion':
            inner = executed.frame.module.computations[reader.get_called_names('calls')[0]]
            parameters = [
                inner.parameters[index]
                for index, operand in enumerate(reader.operands)
                if operand == source.name
            ]
            total += sum(_count_reads(inner, parameter, executed) for parameter in parameters)
            # The compiler wraps operands of matrix products in fusions that return them unchanged.
            if _skip_bitcasts(inner, inner.root) in parameters:
                total += _count_reads(computation, reader, executed)
        elif not _only_forwards(reader, source):
            return whole
    return min(total, whole)


def _only_forwards(reader: Instruction, source: Instruction) -> bool:
    """Returns whether a user only forwards the array without reading it.

    It does so as the target of an update in place, in a tuple, or in a later part of an
    asynchronous collective.
    """
    if reader.opcode == 'dynamic-update-slice':
        return reader.operands[0] == source.name and source.name not in reader.operands[1:]
    return reader.opcode == 'tuple' or _is_async_part(reader)


def _is_async_part(instruction: Instruction) -> bool:
    """Returns whether an instruction is a later part of a collective that is spread over fusions.

    The traffic of such a collective is counted at its first part.
    """
    if 'custom_call_target="AsyncCollectiveDone"' in instruction.attributes:
        return True
    return (
        '"async_collective_fusion_config":{"flag_start"' in instruction.attributes
        and '"flag_start":"-1"' not in instruction.attributes
    )


def _count_writes(inner: Computation, root: Instruction, fusion: Instruction) -> int:
    """Returns the bytes that a fusion writes, summed over the elements of its result."""
    if root.opcode == 'custom-call' and 'AsyncCollectiveStart' in root.attributes:
        return count_hbm_bytes(flatten_shape(fusion.shape)[1:2])  # (the operand, the result, flags)
    outputs = [root]
    if root.opcode == 'tuple':
        outputs = [inner.instructions[name] for name in root.operands]
    results = fusion.shape if isinstance(fusion.shape, tuple) else (fusion.shape,)
    if len(results) != len(outputs):
        raise HloError(f'{fusion.name} has {len(results)} results, its computation {len(outputs)}')
    return sum(
        _count_array_writes(inner, instruction, count_hbm_bytes(flatten_shape(result)))
        for instruction, result in zip(outputs, results, strict=True)
    )


def _count_array_writes(inner: Computation, instruction: Instruction, whole: int) -> int:
    instruction = _skip_bitcasts(inner, instruction)
    if not whole or instruction.opcode == 'parameter' or _is_async_part(instruction):
        return 0
    if instruction.opcode == 'dynamic-update-slice':
        return sum(array.bytes for array in flatten_shape(inner.get_operand(instruction, 1).shape))
    return whole


def _skip_bitcasts(computation: Computation, instruction: Instruction) -> Instruction:
    while instruction.opcode == 'bitcast':
        instruction = computation.get_operand(instruction, 0)
    return instruction
