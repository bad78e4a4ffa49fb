"""The time of each instruction of a compiled program by the roofline model.

A TensorCore runs one instruction after another, so the sum over instructions of the larger of
arithmetic and memory time is a closer estimate of a step than the larger of the two sums
(doi.org/10.1145/1498765.1498785). It is a lower bound as well, except that some copies run beside
other instructions.
"""

import dataclasses
from collections.abc import Iterable

from cpt_jax.plan.hlo.flops import count_own_flops
from cpt_jax.plan.hlo.memory import count_moved_bytes
from cpt_jax.plan.hlo.program import Module
from cpt_jax.plan.hlo.walk import iterate_executed

_COPIES = ('copy', 'copy-start', 'transpose')


@dataclasses.dataclass
class InstructionTime:
    """Time of one instruction, with the instructions that are fused into it.

    Attributes:
      name: its name in the program.
      opcode: its opcode.
      times: executions per step.
      flop_seconds: seconds per execution that its arithmetic needs.
      byte_seconds: seconds per execution that its memory traffic needs.
    """

    name: str
    opcode: str
    times: int
    flop_seconds: float
    byte_seconds: float

    @property
    def seconds(self) -> float:
        """Seconds per step."""
        return self.times * max(self.flop_seconds, self.byte_seconds)

    @property
    def is_copy(self) -> bool:
        """Whether it only changes the layout or the place of an array."""
        return self.opcode in _COPIES


def time_instructions(module: Module, flop_rate: float, byte_rate: float) -> list[InstructionTime]:
    """Returns the time of every instruction that a device executes in a step.

    Args:
      module: the program of one device.
      flop_rate: peak rate of the device, in FLOP/s.
      byte_rate: bandwidth of its memory, in bytes/s.

    Raises:
      HloError: see `iterate_executed`.
    """
    times: list[InstructionTime] = []
    for executed in iterate_executed(module):
        flop_seconds = (count_own_flops(executed) or 0) / flop_rate
        # The instructions inside a fusion follow the fusion.
        if executed.fused:
            times[-1].flop_seconds += flop_seconds * executed.times / times[-1].times
            continue
        byte_seconds = count_moved_bytes(executed) / byte_rate
        instruction = executed.instruction
        times.append(
            InstructionTime(
                instruction.name, instruction.opcode, executed.times, flop_seconds, byte_seconds
            )
        )
    return [time for time in times if time.times]


def sum_seconds(times: Iterable[InstructionTime]) -> float:
    """Returns the seconds of all instructions, one after another."""
    return sum(time.seconds for time in times)
