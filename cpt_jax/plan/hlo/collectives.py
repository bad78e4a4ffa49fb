"""Finds the collectives of a program: their kind, payload, number of executions and groups."""

import dataclasses
import math
import re
from collections.abc import Sequence

from cpt_jax.plan.hlo.groups import parse_replica_groups
from cpt_jax.plan.hlo.loops import Frame
from cpt_jax.plan.hlo.program import HloError, Instruction, Module
from cpt_jax.plan.hlo.walk import ExecutedInstruction, iterate_executed

KINDS = (
    'all-gather',
    'all-reduce',
    'reduce-scatter',
    'all-to-all',
    'ragged-all-to-all',
    'collective-permute',
    'collective-broadcast',
)


@dataclasses.dataclass(frozen=True)
class CollectiveSite:
    """A collective instruction of a program.

    Attributes:
      kind: one of KINDS, by its effect.
      summed: whether it is an all-gather that the compiler writes as an all-reduce of arrays that
        are zero outside each device's own part, which moves twice the bytes.
      dcn: whether it is a transfer between slices, sent by the hosts. If so, `groups` is empty and
        `members` is the number of slices.
      bytes: payload per device and execution: bytes of the result for an all-gather, of the
        operands for other kinds.
      times: executions per step.
      loops: number of enclosing loops.
      groups: device numbers of each group that exchanges data; for a collective-permute, pairs
        (from, to).
      members: number of devices of a group.
      dtype: dtype of the payload, such as 'f32' or 'bf16'.
      is_async: whether the program computes other things between its start and its end.
      name: name of the instruction; if it is spread over several, of the first.
      backward: whether it belongs to the backward pass of the encoder. The recomputed forward pass
        does not, and neither does the loss, which exchanges gradients of embeddings once per step
        (in a shard_map).
    """

    kind: str
    summed: bool
    dcn: bool
    bytes: int
    times: int
    loops: int
    groups: tuple[tuple[int, ...], ...]
    members: int
    backward: bool
    dtype: str = ''
    is_async: bool = False
    name: str = ''

    def is_gradient(self, mesh_shape: Sequence[int], tensor_axis: int) -> bool:
        """Returns whether the collective reduces the gradient of parameters.

        It does if it is a reduction in the backward pass over devices that hold different pairs.

        Args:
          mesh_shape: sizes of the mesh axes; devices are numbered in row-major order.
          tensor_axis: index of the axis along which devices hold the same pairs.
        """
        if not self.backward or self.kind not in ('all-reduce', 'reduce-scatter'):
            return False
        if self.dcn:
            return True
        # Devices hold the same pairs if their numbers are equal after the coordinate of the tensor
        # axis is set to 0.
        stride = math.prod(mesh_shape[tensor_axis + 1 :])
        at_tensor_0 = {
            device - device // stride % mesh_shape[tensor_axis] * stride
            for device in self.groups[0]
        }
        return len(at_tensor_0) > 1


def find_collectives(module: Module, devices: int, slices: int = 1) -> list[CollectiveSite]:
    """Returns all collectives of a program.

    libtpu spreads some collectives over several fusions to overlap them with computation; such a
    collective is counted once, where it starts.

    Args:
      module: the program of one device.
      devices: number of devices that run it.
      slices: number of slices that these devices form.

    Raises:
      HloError: see `iterate_executed`; or a collective has an unknown form.
    """
    found: list[CollectiveSite] = []
    started_channels: set[str] = set()
    continued_channels: set[str] = set()
    for executed in iterate_executed(module):
        kind = executed.instruction.opcode.removesuffix('-start')
        if kind in KINDS and _is_continuation(executed):
            continued_channels.add(executed.instruction.get_attribute('channel_id') or '')
        elif kind in KINDS:
            started_channels.add(executed.instruction.get_attribute('channel_id') or '')
            found.append(_read_site(executed, kind, devices))
        elif (
            executed.instruction.opcode == 'send'
            and '_xla_megascale_transfer_type' in executed.instruction.attributes
        ):
            found.append(_read_transfer_between_slices(executed, slices))
    without_start = continued_channels - started_channels
    if without_start:
        raise HloError(f'parts of collectives that never start: channels {sorted(without_start)}')
    return found


def _read_site(executed: ExecutedInstruction, kind: str, devices: int) -> CollectiveSite:
    groups = parse_replica_groups(executed.instruction.attributes, devices)
    members = 2 if kind == 'collective-permute' else len(groups[0])
    is_async = (
        executed.instruction.opcode.endswith('-start')
        or '"async_collective_fusion_config"' in executed.instruction.attributes
        or _is_started_asynchronously(executed.frame)
    )
    payload = sum(
        array.bytes
        for index in range(len(executed.instruction.operands))
        for array in executed.get_operand_arrays(index)
    )
    summed = kind == 'all-reduce' and _sums_parts_of_zeros(executed)
    if kind == 'all-gather':
        payload *= members
    if kind == 'all-reduce' and executed.frame.computation.name.startswith('all-reduce-scatter'):
        kind = 'reduce-scatter'  # libtpu writes it as a fusion of an all-reduce and a slice
    if summed:
        kind = 'all-gather'
    return CollectiveSite(
        kind,
        summed,
        False,
        payload,
        executed.times,
        executed.loops,
        groups,
        members,
        _is_backward(executed),
        executed.get_operand_arrays(0)[0].dtype,
        is_async,
        executed.instruction.name,
    )


def _read_transfer_between_slices(executed: ExecutedInstruction, slices: int) -> CollectiveSite:
    match = re.search(r'_xla_megascale_transfer_type="(\w+)"', executed.instruction.attributes)
    kind = match[1].lower().replace('_', '-') if match else ''
    if kind not in KINDS:
        raise HloError(f'unknown transfer between slices: {executed.instruction.attributes}')
    payload = sum(array.bytes for array in executed.get_operand_arrays(0)) * (
        slices if kind == 'all-gather' else 1
    )
    return CollectiveSite(
        kind,
        False,
        True,
        payload,
        executed.times,
        executed.loops,
        (),
        slices,
        _is_backward(executed),
        executed.get_operand_arrays(0)[0].dtype,
        is_async=True,  # by the hosts
        name=executed.instruction.name,
    )


def _is_started_asynchronously(frame: Frame) -> bool:
    """Returns whether an asynchronous call, such as one to a SparseCore, runs this computation."""
    return frame.call is not None and (
        frame.call.opcode.endswith('-start')
        or (frame.caller is not None and _is_started_asynchronously(frame.caller))
    )


def _is_continuation(executed: ExecutedInstruction) -> bool:
    """Returns whether an instruction is a later part of a collective that another fusion starts."""
    if '"async_collective_fusion_config"' not in executed.instruction.attributes:
        return False
    readers = executed.frame.computation.users[executed.instruction.name]
    return not any(
        'custom_call_target="AsyncCollectiveStart"' in reader.attributes for reader in readers
    )


def _sums_parts_of_zeros(executed: ExecutedInstruction) -> bool:
    """Returns whether every operand is an array of zeros into which a part was written."""
    return all(
        _is_part_of_zeros(executed.frame, operand) for operand in executed.instruction.operands
    )


def _is_part_of_zeros(frame: Frame, name: str) -> bool:
    instruction = frame.computation.instructions[name]
    while instruction.opcode in ('bitcast', 'copy', 'convert', 'fusion', 'copy-done', 'copy-start'):
        if instruction.opcode == 'fusion':
            frame = frame.enter(instruction, instruction.get_called_names('calls')[0])
            instruction = frame.computation.root
        else:
            instruction = frame.computation.get_operand(instruction, 0)
    if instruction.opcode != 'dynamic-update-slice':
        return False
    return _is_zero(frame, instruction.operands[0])


def _is_zero(frame: Frame, name: str) -> bool:
    instruction = frame.computation.instructions[name]
    if instruction.opcode == 'constant':
        return re.fullmatch(r'-?0(\.0*)?', instruction.literal) is not None
    if instruction.opcode in ('broadcast', 'bitcast', 'copy', 'convert', 'copy-done', 'copy-start'):
        return _is_zero(frame, instruction.operands[0])
    if instruction.opcode == 'fusion':
        inner = frame.enter(instruction, instruction.get_called_names('calls')[0])
        return _is_zero(inner, inner.computation.root.name)
    in_fusion = frame.call is not None and frame.call.opcode == 'fusion'
    if instruction.opcode == 'parameter' and frame.caller and frame.call and in_fusion:
        return _is_zero(frame.caller, frame.call.operands[int(instruction.literal)])
    return False


def _is_backward(executed: ExecutedInstruction) -> bool:
    """Returns whether an instruction belongs to the backward pass, without recomputation.

    The compiler drops the names of some instructions, so the names of enclosing loops are used too.
    """
    name = _find_op_name(executed.frame, executed.instruction)
    if 'rematted_computation' in name or 'shard_map' in name:
        return False
    return 'transpose(' in name or any(
        'transpose(' in loop_name for loop_name in _find_enclosing_loop_names(executed.frame)
    )


def _find_op_name(frame: Frame, instruction: Instruction, depth: int = 10) -> str:
    """Returns the op_name of an instruction; if it has none, that of an operand, up to `depth`
    instructions back.
    """
    if instruction.op_name or not depth:
        return instruction.op_name
    if instruction.opcode == 'while':
        return _find_loop_name(frame, instruction)
    if instruction.opcode == 'fusion':
        inside = frame.module.computations[instruction.get_called_names('calls')[0]].root.op_name
        if inside:
            return inside
    names = (
        _find_op_name(frame, frame.computation.instructions[operand], depth - 1)
        for operand in instruction.operands
    )
    return next(filter(None, names), '')


def _find_loop_name(frame: Frame, loop: Instruction) -> str:
    """Returns the op_name of a loop.

    A loop that the compiler peels loses its name. The name of an instruction of the backward pass
    in its body is used instead, if there is one.
    """
    if loop.op_name:
        return loop.op_name
    inside = frame.module.computations[loop.get_called_names('body')[0]].instructions.values()
    return next((inner.op_name for inner in inside if 'transpose(' in inner.op_name), '')


def _find_enclosing_loop_names(frame: Frame | None) -> list[str]:
    if frame is None or frame.caller is None or frame.call is None:
        return []
    names = _find_enclosing_loop_names(frame.caller)
    if frame.call.opcode == 'while':
        return [_find_loop_name(frame.caller, frame.call), *names]
    return names
