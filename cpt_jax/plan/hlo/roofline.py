"""The time of each instruction of a compiled program by the roofline model.

An instruction takes the larger of its arithmetic and its memory time
(doi.org/10.1145/1498765.1498785). plan/hlo/schedule.py adds them up.
"""

import dataclasses
from collections.abc import Iterable

from cpt_jax.plan.hlo.flops import count_own_flops, get_head_width
from cpt_jax.plan.hlo.memory import count_moved_bytes
from cpt_jax.plan.hlo.program import Instruction, Module
from cpt_jax.plan.hlo.walk import iterate_executed

_COPIES = {'copy', 'transpose'}
_WITHOUT_WORK = {'parameter', 'bitcast', 'tuple', 'get-tuple-element'}


@dataclasses.dataclass
class InstructionTime:
    """Time of one instruction, with the instructions that are fused into it.

    Attributes:
      name: its name in the program.
      opcode: its opcode.
      times: executions per step.
      flop_seconds: seconds per execution that its arithmetic needs.
      byte_seconds: seconds per execution that its memory traffic needs.
      is_copy: whether it only changes the layout or the place of an array.
      head_width: dimension of the heads, of an attention kernel; else 0.
    """

    name: str
    opcode: str
    times: int
    flop_seconds: float
    byte_seconds: float
    is_copy: bool = False
    head_width: int = 0

    @property
    def seconds(self) -> float:
        """Seconds per step."""
        return self.times * max(self.flop_seconds, self.byte_seconds)

    def compute_padding_seconds(self, matrix_width: int) -> float:
        """Returns the seconds per step that an attention kernel needs in addition, because a head
        is padded to the width of a matrix unit.
        """
        if not self.head_width:
            return 0.0
        padded = -(-self.head_width // matrix_width) * matrix_width
        flop_seconds = self.flop_seconds * padded / self.head_width
        return self.times * max(flop_seconds, self.byte_seconds) - self.seconds


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
                instruction.name,
                instruction.opcode,
                executed.times,
                flop_seconds,
                byte_seconds,
                _is_copy(module, instruction),
                get_head_width(executed),
            )
        )
    return [time for time in times if time.times]


def _is_copy(module: Module, instruction: Instruction) -> bool:
    if instruction.opcode != 'fusion':
        return instruction.opcode in _COPIES
    inner = module.computations[instruction.get_called_names('calls')[0]].instructions.values()
    working = {inside.opcode for inside in inner} - _WITHOUT_WORK
    return bool(working) and working <= _COPIES


def sum_seconds(times: Iterable[InstructionTime]) -> float:
    """Returns the seconds of all instructions, one after another."""
    return sum(time.seconds for time in times)
