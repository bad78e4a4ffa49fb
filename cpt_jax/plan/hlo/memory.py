"""The memory of a compiled program: how much of it must be there, and how much of it must be read
and written.

Traffic is a lower bound: what each instruction must read and write once, without padding, at the
full rate of the memory.
"""

import re

import jax

from cpt_jax.plan.hlo.program import Computation, HloError, Instruction, Module, arrays
from cpt_jax.plan.hlo.walk import Executed, executed, in_hbm

_G = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
# What libtpu says now, and what it said in reports of 2022 to 2025.
_TOO_MUCH = (
    r'memory required for HLO temporaries \(([\d.]+)([KMGT]?)',
    r'Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm',
)

# Nothing is moved by these themselves.
_FREE = {
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


def bytes_needed(compiled: jax.stages.Compiled) -> int:
    """Memory of a device that a program takes when it runs.

    The peak of arguments, results and temporaries is what the compiler itself compares with the
    limit: the sizes of the parts that `memory_analysis` also gives add up to more, as temporaries
    share places. The program's code lies beside it.
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise HloError('the compiler does not report the memory of its program')
    return analysis.peak_memory_in_bytes + analysis.generated_code_size_in_bytes


def bytes_refused(error: Exception) -> int | None:
    """Memory of a device that the compiler asked for in vain; None where something else went
    wrong.
    """
    text = str(error)
    found = 'RESOURCE_EXHAUSTED' in text and next(
        filter(None, (re.search(pattern, text) for pattern in _TOO_MUCH)), None
    )
    return int(float(found[1]) * _G[found[2]]) if found else None


def traffic(module: Module) -> int:
    """Bytes that one device reads from and writes to its main memory in a step.

    Raises:
      HloError: see `executed`.
    """
    return sum(step.times * _moved(step) for step in executed(module) if not step.fused)


def _moved(step: Executed) -> int:
    instruction = step.instruction
    opcode = instruction.opcode.removesuffix('-start')
    if instruction.opcode in _FREE or step.is_bookkeeping:
        return 0
    if opcode == 'fusion':
        inner = step.frame.module.computations[instruction.called('calls')[0]]
        return _read_by_fusion(step, inner) + _written(inner, inner.root, instruction)
    if opcode in _SLICES:
        looked_at = step.results[0].bytes if in_hbm(step.operand_arrays(0)) else 0
        return looked_at + in_hbm(step.results)
    if opcode == 'dynamic-update-slice':
        return in_hbm(step.operand_arrays(1)) + (
            step.operand_arrays(1)[0].bytes if in_hbm(step.results) else 0
        )
    if opcode == 'scatter':
        # The old values are read, and written.
        return in_hbm(step.operand_arrays(1)) + 3 * in_hbm(step.operand_arrays(2))
    return sum(
        in_hbm(step.operand_arrays(index)) for index in range(len(instruction.operands))
    ) + in_hbm(step.results)


def _read_by_fusion(step: Executed, inner: Computation) -> int:
    total = 0
    for index, parameter in enumerate(inner.parameters):
        whole = in_hbm(step.operand_arrays(index))
        if whole:
            total += min(whole, _read(inner, parameter, step))
    return total


def _read(computation: Computation, source: Instruction, step: Executed) -> int:
    """Bytes of an array within a fusion that its readers look at; where one of them looks at
    everything, all of it.
    """
    whole = sum(array.bytes for array in arrays(source.shape))
    total = 0
    for reader in computation.users[source.name]:
        if reader.opcode in _SLICES and reader.operands[0] == source.name:
            total += sum(array.bytes for array in arrays(reader.shape))
        elif reader.opcode == 'bitcast':
            total += _read(computation, reader, step)
        elif reader.opcode == 'fusion':
            inner = step.frame.module.computations[reader.called('calls')[0]]
            parameters = [
                inner.parameters[place]
                for place, operand in enumerate(reader.operands)
                if operand == source.name
            ]
            total += sum(_read(inner, parameter, step) for parameter in parameters)
            # The compiler wraps operands of products in fusions that do nothing.
            if _behind_bitcasts(inner, inner.root) in parameters:
                total += _read(computation, reader, step)
        elif not _passes_on(reader, source):
            return whole
    return min(total, whole)


def _passes_on(reader: Instruction, source: Instruction) -> bool:
    """Does it only hand the array on: as the target of an update in place, or as part of a
    collective that runs meanwhile?
    """
    if reader.opcode == 'dynamic-update-slice':
        return reader.operands[0] == source.name and source.name not in reader.operands[1:]
    return reader.opcode == 'tuple' or _is_async_part(reader)


def _is_async_part(instruction: Instruction) -> bool:
    """A collective that libtpu spreads over fusions appears in each: it reads and writes where it
    starts.
    """
    if 'custom_call_target="AsyncCollectiveDone"' in instruction.attributes:
        return True
    return (
        '"async_collective_fusion_config":{"flag_start"' in instruction.attributes
        and '"flag_start":"-1"' not in instruction.attributes
    )


def _written(inner: Computation, root: Instruction, fusion: Instruction) -> int:
    """What a fusion writes, element by element of its result."""
    if root.opcode == 'custom-call' and 'AsyncCollectiveStart' in root.attributes:
        return in_hbm(arrays(fusion.shape)[1:2])  # (the operand, the result, flags)
    made = (
        [inner.instructions[name] for name in root.operands] if root.opcode == 'tuple' else [root]
    )
    results = fusion.shape if isinstance(fusion.shape, tuple) else (fusion.shape,)
    if len(results) != len(made):
        raise HloError(f'{fusion.name} has {len(results)} results, its computation {len(made)}')
    return sum(
        _written_array(inner, instruction, in_hbm(arrays(result)))
        for instruction, result in zip(made, results, strict=True)
    )


def _written_array(inner: Computation, instruction: Instruction, whole: int) -> int:
    instruction = _behind_bitcasts(inner, instruction)
    if not whole or instruction.opcode == 'parameter' or _is_async_part(instruction):
        return 0
    if instruction.opcode == 'dynamic-update-slice':
        return sum(array.bytes for array in arrays(inner.operand(instruction, 1).shape))
    return whole


def _behind_bitcasts(computation: Computation, instruction: Instruction) -> Instruction:
    while instruction.opcode == 'bitcast':
        instruction = computation.operand(instruction, 0)
    return instruction
