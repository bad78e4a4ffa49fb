"""What the devices of a program send each other: which collectives, how often, in which loops."""

import dataclasses
import math
import re
from collections.abc import Sequence

from cpt_jax.plan.hlo.groups import replica_groups
from cpt_jax.plan.hlo.loops import Frame
from cpt_jax.plan.hlo.program import HloError, Instruction, Module
from cpt_jax.plan.hlo.walk import Executed, executed

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
class Site:
    """A collective in one place of the program.

    Attributes:
      kind: one of KINDS: what it is for.
      summed: an all-gather that the compiler writes as the sum of arrays that are zero but for each
        device's own part. It moves twice as much.
      dcn: between slices, sent by the hosts; `groups` is empty and `members` the number of slices.
      bytes: payload of a device and execution: of the result of an all-gather, of the operand of
        others.
      times: executions a step.
      loops: loops around it.
      groups: the devices that exchange data; of a permutation, pairs (from, to).
      members: devices of a group.
      backward: in the backward pass, and neither a forward pass that is computed again there nor
        the loss, which exchanges gradients of embeddings once a step (in a shard_map of its own).
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

    def is_gradient(self, mesh_shape: Sequence[int], tensor_axis: int) -> bool:
        """Does it reduce the gradient of parameters: a reduction of the backward pass over devices
        that hold different pairs?

        Args:
          mesh_shape: sizes of the mesh's axes; devices are numbered in its order.
          tensor_axis: which axis holds the same pairs.
        """
        if not self.backward or self.kind not in ('all-reduce', 'reduce-scatter'):
            return False
        if self.dcn:
            return True
        after = math.prod(mesh_shape[tensor_axis + 1 :])
        return (
            len(
                {
                    device - device // after % mesh_shape[tensor_axis] * after
                    for device in self.groups[0]
                }
            )
            > 1
        )


def collectives(module: Module, devices: int, slices: int = 1) -> list[Site]:
    """All collectives of a program.

    Libtpu spreads some over several fusions, to compute meanwhile: those count where they start.

    Args:
      module: the program of one device.
      devices: how many run it.
      slices: how many slices they are in.

    Raises:
      HloError: see `executed`; or a collective in a form that is not known.
    """
    found: list[Site] = []
    begun: set[str] = set()
    later: set[str] = set()
    for step in executed(module):
        kind = step.instruction.opcode.removesuffix('-start')
        if kind in KINDS and _goes_on(step):
            later.add(step.instruction.attribute('channel_id') or '')
        elif kind in KINDS:
            begun.add(step.instruction.attribute('channel_id') or '')
            found.append(_site(step, kind, devices))
        elif (
            step.instruction.opcode == 'send'
            and '_xla_megascale_transfer_type' in step.instruction.attributes
        ):
            found.append(_between_slices(step, slices))
    if later - begun:
        raise HloError(f'collectives go on that never start: channels {sorted(later - begun)}')
    return found


def _site(step: Executed, kind: str, devices: int) -> Site:
    groups = replica_groups(step.instruction.attributes, devices)
    members = 2 if kind == 'collective-permute' else len(groups[0])
    payload = sum(
        array.bytes
        for index in range(len(step.instruction.operands))
        for array in step.operand_arrays(index)
    )
    summed = kind == 'all-reduce' and _sums_parts_of_zeros(step)
    if kind == 'all-gather':
        payload *= members
    if kind == 'all-reduce' and step.frame.computation.name.startswith('all-reduce-scatter'):
        kind = 'reduce-scatter'  # libtpu's form of it: a fusion of the sum and the slice
    kind = 'all-gather' if summed else kind
    return Site(
        kind, summed, False, payload, step.times, step.loops, groups, members, _is_backward(step)
    )


def _between_slices(step: Executed, slices: int) -> Site:
    said = re.search(r'_xla_megascale_transfer_type="(\w+)"', step.instruction.attributes)
    kind = said[1].lower().replace('_', '-') if said else ''
    if kind not in KINDS:
        raise HloError(f'unknown transfer between slices: {step.instruction.attributes}')
    payload = sum(array.bytes for array in step.operand_arrays(0)) * (
        slices if kind == 'all-gather' else 1
    )
    return Site(kind, False, True, payload, step.times, step.loops, (), slices, _is_backward(step))


def _goes_on(step: Executed) -> bool:
    """Is it a later part of a collective that another fusion starts?"""
    if '"async_collective_fusion_config"' not in step.instruction.attributes:
        return False
    readers = step.frame.computation.users[step.instruction.name]
    return not any(
        'custom_call_target="AsyncCollectiveStart"' in reader.attributes for reader in readers
    )


def _sums_parts_of_zeros(step: Executed) -> bool:
    """Is every operand a part that is written into zeros?"""
    return all(_part_of_zeros(step.frame, operand) for operand in step.instruction.operands)


def _part_of_zeros(frame: Frame, name: str) -> bool:
    instruction = frame.computation.instructions[name]
    while instruction.opcode in ('bitcast', 'copy', 'convert', 'fusion', 'copy-done', 'copy-start'):
        if instruction.opcode == 'fusion':
            frame = frame.into(instruction, instruction.called('calls')[0])
            instruction = frame.computation.root
        else:
            instruction = frame.computation.operand(instruction, 0)
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
        inner = frame.into(instruction, instruction.called('calls')[0])
        return _is_zero(inner, inner.computation.root.name)
    in_fusion = frame.by is not None and frame.by.opcode == 'fusion'
    if instruction.opcode == 'parameter' and frame.caller and frame.by and in_fusion:
        return _is_zero(frame.caller, frame.by.operands[int(instruction.literal)])
    return False


def _is_backward(step: Executed) -> bool:
    """Is it in the backward pass, and no forward pass that is computed again there? The compiler
    drops the names of some.
    """
    name = _op_name(step.frame, step.instruction)
    if 'rematted_computation' in name or 'shard_map' in name:
        return False
    return 'transpose(' in name or any(
        'transpose(' in around for around in _loops_around(step.frame)
    )


def _op_name(frame: Frame, instruction: Instruction, deep: int = 10) -> str:
    """Its own, or where it has none that of what it sends."""
    if instruction.op_name or not deep:
        return instruction.op_name
    if instruction.opcode == 'while':
        return _loop_name(frame, instruction)
    if instruction.opcode == 'fusion':
        inside = frame.module.computations[instruction.called('calls')[0]].root.op_name
        if inside:
            return inside
    named = (
        _op_name(frame, frame.computation.instructions[operand], deep - 1)
        for operand in instruction.operands
    )
    return next(filter(None, named), '')


def _loop_name(frame: Frame, loop: Instruction) -> str:
    """A loop that the compiler peels loses its name; then it is in the backward pass where
    something within it is.
    """
    within = frame.module.computations[loop.called('body')[0]].instructions.values()
    return loop.op_name or next(
        (inner.op_name for inner in within if 'transpose(' in inner.op_name), ''
    )


def _loops_around(frame: Frame | None) -> list[str]:
    if frame is None or frame.caller is None or frame.by is None:
        return []
    here = [_loop_name(frame.caller, frame.by)] if frame.by.opcode == 'while' else []
    return here + _loops_around(frame.caller)
