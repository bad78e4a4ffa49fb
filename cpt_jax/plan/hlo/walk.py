"""What a program executes, and how often."""

import dataclasses
from collections.abc import Iterator

from cpt_jax.plan.hlo.loops import Frame, trip_count
from cpt_jax.plan.hlo.program import HBM, Array, Instruction, Module, arrays, elements

_BRANCHES = ('branch_computations', 'true_computation', 'false_computation')
# The computations that these name combine two elements; they are no step of the program.
_ELEMENTWISE = {
    'all-reduce', 'all-reduce-start', 'reduce', 'reduce-scatter', 'reduce-scatter-start',
    'reduce-window', 'scatter', 'select-and-scatter',
    'sort', 'map',
}  # fmt: skip
# Custom calls of libtpu that name, pack or hand on something: neither arithmetic nor traffic to
# speak of.
_BOOKKEEPING = {
    'AllocateBuffer', 'AssumeGatherIndicesInBound', 'AsyncCollectiveDone', 'AsyncCollectiveStart',
    'ConcatBitcast',
    'GatherScatterIndicesBitpacked', 'PrepareAsyncCallDone', 'PrepareAsyncCallStart', 'Sharding',
    'SliceId', 'ZeroCrop',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Executed:
    """An instruction of a step.

    Attributes:
      frame: the computation that it stands in.
      times: executions a step.
      loops: loops around it.
      fused: within a fusion: it reads and writes registers, not memory.
    """

    instruction: Instruction
    frame: Frame
    times: int
    loops: int
    fused: bool

    @property
    def results(self) -> list[Array]:
        """The arrays that it makes. The start of something asynchronous has operands and flags in
        its type too.
        """
        shape, opcode = self.instruction.shape, self.instruction.opcode
        if opcode == 'copy-start':  # (result, source, flag)
            return arrays(elements(shape)[0])
        if opcode.endswith('-start') and opcode != 'all-reduce-start':  # (sources, results, flags)
            return arrays(elements(shape)[1])
        return arrays(shape)

    def operand_arrays(self, index: int) -> list[Array]:
        """The arrays of an operand."""
        return arrays(self.frame.computation.operand(self.instruction, index).shape)

    @property
    def kernel(self) -> str | None:
        """The target of a custom call that does real work."""
        target = (self.instruction.attribute('custom_call_target') or '').strip('"')
        return (
            target
            if self.instruction.opcode == 'custom-call' and target not in _BOOKKEEPING
            else None
        )

    @property
    def is_bookkeeping(self) -> bool:
        """Is it another custom call?"""
        return self.instruction.opcode == 'custom-call' and self.kernel is None


def executed(module: Module) -> Iterator[Executed]:
    """Every instruction that runs. Of a conditional every branch counts, for want of knowing which
    one is taken.

    Raises:
      HloError: a loop whose number of passes is not clear.
    """
    yield from _within(Frame(module, module.entry), 1, 0, False)


def _within(frame: Frame, times: int, loops: int, fused: bool) -> Iterator[Executed]:
    for instruction in frame.computation.instructions.values():
        yield Executed(instruction, frame, times, loops, fused)
        if instruction.opcode == 'while':
            body = frame.into(instruction, instruction.called('body')[0])
            yield from _within(body, times * trip_count(frame, instruction), loops + 1, fused)
        elif instruction.opcode not in _ELEMENTWISE:
            inside = fused or instruction.opcode == 'fusion'
            for name in instruction.called('calls', 'to_apply', 'called_computations', *_BRANCHES):
                yield from _within(frame.into(instruction, name), times, loops, inside)


def in_hbm(found: list[Array]) -> int:
    """Bytes of those arrays that lie in the chip's main memory."""
    return sum(array.bytes for array in found if array.space == HBM)
