"""Iterates over the instructions that a program executes, with their numbers of executions."""

import dataclasses
from collections.abc import Iterator

from cpt_jax.plan.hlo.loops import Frame, compute_trip_count
from cpt_jax.plan.hlo.program import (
    HBM,
    Array,
    Instruction,
    Module,
    flatten_shape,
    get_tuple_elements,
)

_BRANCHES = ('branch_computations', 'true_computation', 'false_computation')
# Opcodes whose called computations only combine two elements; they are not yielded.
_ELEMENTWISE = {
    'all-reduce', 'all-reduce-start', 'reduce', 'reduce-scatter', 'reduce-scatter-start',
    'reduce-window', 'scatter', 'select-and-scatter',
    'sort', 'map',
}  # fmt: skip
# Custom calls of libtpu without significant arithmetic or traffic.
_BOOKKEEPING = {
    'AllocateBuffer', 'AssumeGatherIndicesInBound', 'AsyncCollectiveDone', 'AsyncCollectiveStart',
    'ConcatBitcast',
    'GatherScatterIndicesBitpacked', 'PrepareAsyncCallDone', 'PrepareAsyncCallStart', 'Sharding',
    'SliceId', 'ZeroCrop',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ExecutedInstruction:
    """An instruction that the program executes.

    Attributes:
      instruction: the instruction.
      frame: frame of the computation that contains it.
      times: executions per step.
      loops: number of enclosing loops.
      fused: whether it is inside a fusion, where it reads and writes registers, not memory.
    """

    instruction: Instruction
    frame: Frame
    times: int
    loops: int
    fused: bool

    @property
    def results(self) -> list[Array]:
        """The arrays that it computes.

        The type of the start of an asynchronous operation also includes its operands and flags,
        which are left out here.
        """
        shape = self.instruction.shape
        opcode = self.instruction.opcode
        if opcode == 'copy-start':  # (result, source, flag)
            return flatten_shape(get_tuple_elements(shape)[0])
        if opcode.endswith('-start') and opcode != 'all-reduce-start':  # (sources, results, flags)
            return flatten_shape(get_tuple_elements(shape)[1])
        return flatten_shape(shape)

    def get_operand_arrays(self, index: int) -> list[Array]:
        """Returns the arrays of an operand."""
        return flatten_shape(self.frame.computation.get_operand(self.instruction, index).shape)

    @property
    def kernel(self) -> str | None:
        """Target of a custom call that does real work; None for other instructions."""
        target = (self.instruction.get_attribute('custom_call_target') or '').strip('"')
        if self.instruction.opcode != 'custom-call' or target in _BOOKKEEPING:
            return None
        return target

    @property
    def is_bookkeeping(self) -> bool:
        """Whether it is a custom call without real work."""
        return self.instruction.opcode == 'custom-call' and self.kernel is None


def iterate_executed(module: Module) -> Iterator[ExecutedInstruction]:
    """Yields every instruction that runs, with its number of executions.

    All branches of a conditional are yielded, because the taken branch is unknown.

    Raises:
      HloError: the trip count of a loop cannot be derived.
    """
    yield from _walk(Frame(module, module.entry), times=1, loops=0, fused=False)


def _walk(frame: Frame, times: int, loops: int, fused: bool) -> Iterator[ExecutedInstruction]:
    for instruction in frame.computation.instructions.values():
        yield ExecutedInstruction(instruction, frame, times, loops, fused)
        if instruction.opcode == 'while':
            body = frame.enter(instruction, instruction.get_called_names('body')[0])
            yield from _walk(body, times * compute_trip_count(frame, instruction), loops + 1, fused)
        elif instruction.opcode not in _ELEMENTWISE:
            inside = fused or instruction.opcode == 'fusion'
            for name in instruction.get_called_names(
                'calls', 'to_apply', 'called_computations', *_BRANCHES
            ):
                yield from _walk(frame.enter(instruction, name), times, loops, inside)


def count_hbm_bytes(arrays: list[Array]) -> int:
    """Returns the bytes of those arrays that are in the chip's main memory."""
    return sum(array.bytes for array in arrays if array.space == HBM)
