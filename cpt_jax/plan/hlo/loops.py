"""Derives the trip counts of loops.

XLA's cost analysis counts the body of a loop only once, and programs of libtpu do not state trip
counts. A loop from jax.lax.scan carries a counter: its condition compares the counter with a bound,
and its body adds a step. Both may be inside fusions and copies, the bound may be carried unchanged,
and a peeled loop starts at 1. This module follows all of this through the program; it raises an
error if the trip count cannot be derived, and never guesses.
"""

import dataclasses
import re

from cpt_jax.plan.hlo.program import Computation, HloError, Instruction, Module

# Opcodes whose result equals their operand.
_IDENTITY = {
    'copy',
    'bitcast',
    'convert',
    'reshape',
    'optimization-barrier',
    'copy-start',
    'copy-done',
}
_ARITHMETIC = {
    'add': lambda a, b: a + b,
    'subtract': lambda a, b: a - b,
    'multiply': lambda a, b: a * b,
}
_MIRRORED = {'LT': 'GT', 'GT': 'LT', 'LE': 'GE', 'GE': 'LE', 'NE': 'NE'}


@dataclasses.dataclass(frozen=True)
class Frame:
    """A computation together with the instruction that calls it, like a stack frame.

    Attributes:
      module: the whole program.
      computation: the called computation.
      caller: frame of the calling instruction; None for the entry computation.
      call: the calling instruction. Its operands are the parameters of the computation; the single
        operand of a while loop is the tuple that the loop carries.
    """

    module: Module
    computation: Computation
    caller: 'Frame | None' = None
    call: Instruction | None = None

    def enter(self, instruction: Instruction, name: str) -> 'Frame':
        """Returns the frame of the computation `name`, called by an instruction of this frame."""
        return Frame(self.module, self.module.computations[name], self, instruction)


@dataclasses.dataclass(frozen=True)
class _Counter:
    """A value that is an element of the tuple that a loop carries, plus a constant.

    Attributes:
      index: index of the element.
      plus: the constant.
    """

    index: int
    plus: int


def compute_trip_count(frame: Frame, loop: Instruction) -> int:
    """Returns the number of executions of a loop's body.

    Args:
      frame: the frame that contains the loop.
      loop: a while instruction.

    Raises:
      HloError: the trip count cannot be derived.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    try:
        return _derive_trip_count(frame, loop)
    except HloError as error:
        raise HloError(
            f'cannot derive the trip count of {loop.name} ({loop.op_name or "no name"}): {error}'
        ) from error


def _derive_trip_count(frame: Frame, loop: Instruction) -> int:
    condition = frame.enter(loop, loop.get_called_names('condition')[0])
    body = frame.enter(loop, loop.get_called_names('body')[0])
    test_frame = condition
    test = condition.computation.root
    while test.opcode in _IDENTITY or test.opcode == 'fusion':
        test_frame, test = _enter_fusion_or_copy(test_frame, test)
    direction = test.get_attribute('direction')
    if test.opcode != 'compare' or direction not in _MIRRORED:
        raise HloError(f'its condition ends in {test.opcode} {direction}')
    left, right = (_evaluate(test_frame, operand) for operand in test.operands)
    if isinstance(right, _Counter):
        left, right, direction = right, left, _MIRRORED[direction]
    if not isinstance(left, _Counter) or isinstance(right, _Counter):
        raise HloError('its condition does not compare a counter with a number')
    start = _evaluate_element(frame, loop.operands[0], left.index)
    step = _evaluate_element(body, body.computation.root.name, left.index)
    if (
        isinstance(start, _Counter)
        or not isinstance(step, _Counter)
        or step.index != left.index
        or not step.plus
    ):
        raise HloError('the start or the step of its counter is unknown')
    return _count_passes(start + left.plus, right, step.plus, direction)


def _count_passes(start: int, bound: int, step: int, direction: str) -> int:
    if direction == 'NE':
        if (bound - start) % step or (bound - start) // step < 0:
            raise HloError(f'it steps by {step} from {start} past {bound}')
        return (bound - start) // step
    is_rising = direction in ('LT', 'LE')
    if is_rising != (step > 0):
        raise HloError(f'it steps by {step} while {direction} {bound}')
    distance = bound - start if is_rising else start - bound
    if direction in ('LE', 'GE'):
        distance += 1
    return max(0, -(-distance // abs(step)))


def _enter_fusion_or_copy(frame: Frame, instruction: Instruction) -> tuple[Frame, Instruction]:
    """Returns the instruction that computes the result of a fusion, a copy or another identity.

    It is the root of the fusion, or the operand of the copy, and is returned with its frame.
    """
    if instruction.opcode == 'fusion':
        inner = frame.enter(instruction, instruction.get_called_names('calls')[0])
        return inner, inner.computation.root
    return frame, frame.computation.get_operand(instruction, 0)


def _evaluate(frame: Frame, name: str) -> int | _Counter:
    """Returns the value of a scalar: a number, or a counter of the innermost loop."""
    instruction = frame.computation.instructions[name]
    if instruction.opcode == 'constant':
        return int(instruction.literal)
    if instruction.opcode == 'parameter':
        return _evaluate(*_resolve_parameter(frame, instruction))
    if instruction.opcode in _IDENTITY or instruction.opcode == 'fusion':
        inner, found = _enter_fusion_or_copy(frame, instruction)
        return _evaluate(inner, found.name)
    if instruction.opcode == 'get-tuple-element':
        return _evaluate_element(frame, instruction.operands[0], instruction.get_number('index'))
    if instruction.opcode in _ARITHMETIC:
        return _apply_arithmetic(
            instruction.opcode, *(_evaluate(frame, operand) for operand in instruction.operands)
        )
    raise HloError(f'{name} is the result of {instruction.opcode}')


def _apply_arithmetic(opcode: str, a: int | _Counter, b: int | _Counter) -> int | _Counter:
    if isinstance(a, int) and isinstance(b, int):
        return _ARITHMETIC[opcode](a, b)
    if isinstance(b, _Counter) and opcode == 'add':
        a, b = b, a
    if isinstance(a, int) or isinstance(b, _Counter) or opcode == 'multiply':
        raise HloError(f'its counter is an operand of {opcode}, but not as counter + number')
    return _Counter(a.index, _ARITHMETIC[opcode](a.plus, b))


def _evaluate_element(frame: Frame, name: str, index: int) -> int | _Counter:
    """Returns the value of element `index` of a tuple."""
    instruction = frame.computation.instructions[name]
    if instruction.opcode == 'tuple':
        return _evaluate(frame, instruction.operands[index])
    in_loop = frame.call is not None and frame.call.opcode == 'while'
    if instruction.opcode == 'parameter' and frame.caller and frame.call and in_loop:
        body = frame.module.computations[frame.call.get_called_names('body')[0]]
        if _is_carried_unchanged(body, index):
            return _evaluate_element(frame.caller, frame.call.operands[0], index)
        return _Counter(index, 0)
    if instruction.opcode == 'parameter':
        return _evaluate_element(*_resolve_parameter(frame, instruction), index)
    if instruction.opcode == 'copy-start':  # (result, source, context)
        return _evaluate(frame, instruction.operands[0])
    if instruction.opcode in _IDENTITY or instruction.opcode == 'fusion':
        inner, found = _enter_fusion_or_copy(frame, instruction)
        return _evaluate_element(inner, found.name, index)
    if instruction.opcode == 'while':
        body = frame.module.computations[instruction.get_called_names('body')[0]]
        if _is_carried_unchanged(body, index):
            return _evaluate_element(frame, instruction.operands[0], index)
    raise HloError(f'{name}, element {index}, is the result of {instruction.opcode}')


def _is_carried_unchanged(body: Computation, index: int) -> bool:
    """Returns whether a loop's body passes on element `index` of the carried tuple unchanged."""
    root = body.root
    if root.opcode != 'tuple':
        return False
    source = body.get_operand(root, index)
    while source.opcode in _IDENTITY:
        source = body.get_operand(source, 0)
    is_carried = (
        source.opcode == 'get-tuple-element' and body.get_operand(source, 0).opcode == 'parameter'
    )
    return is_carried and source.get_number('index') == index


def _resolve_parameter(frame: Frame, parameter: Instruction) -> tuple[Frame, str]:
    """Returns the operand that a parameter of a fusion or call receives, and its frame."""
    if frame.caller is None or frame.call is None or frame.call.opcode == 'while':
        raise HloError(f'it depends on {parameter.name}, an argument of the program or a loop')
    return frame.caller, frame.call.operands[int(parameter.literal)]
