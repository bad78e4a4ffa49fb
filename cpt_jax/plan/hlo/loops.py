"""How often a loop runs: XLA's own cost analysis counts the body of a loop once, and libtpu's text
does not name a trip count.

A loop that jax.lax.scan makes carries a counter: the condition compares it with a bound, the body
adds a step. Both may hide in fusions and copies, the bound may be carried along unchanged, and a
peeled loop starts at 1. All of that is followed through the text; whatever does not come out as a
number is an error, never a guess.
"""

import dataclasses
import re

from cpt_jax.plan.hlo.program import Computation, HloError, Instruction, Module

# What passes its operand on.
_SAME = {'copy', 'bitcast', 'convert', 'reshape', 'optimization-barrier', 'copy-start', 'copy-done'}
_ARITHMETIC = {
    'add': lambda a, b: a + b,
    'subtract': lambda a, b: a - b,
    'multiply': lambda a, b: a * b,
}
_MIRRORED = {'LT': 'GT', 'GT': 'LT', 'LE': 'GE', 'GE': 'LE', 'NE': 'NE'}


@dataclasses.dataclass(frozen=True)
class Frame:
    """A computation where it runs.

    Attributes:
      caller: the frame of the instruction that runs it; None for the entry.
      by: that instruction. Its operands are the parameters here; of a while loop it is the one
        tuple that is carried.
    """

    module: Module
    computation: Computation
    caller: 'Frame | None' = None
    by: Instruction | None = None

    def into(self, instruction: Instruction, name: str) -> 'Frame':
        """The frame of a computation that one of the instructions here calls."""
        return Frame(self.module, self.module.computations[name], self, instruction)


@dataclasses.dataclass(frozen=True)
class _Counter:
    """An element of the tuple that a loop carries, plus a number."""

    index: int
    plus: int


def trip_count(frame: Frame, loop: Instruction) -> int:
    """How often the body of a while instruction of this frame runs.

    Raises:
      HloError: the loop does not count from a number to a number.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    try:
        return _derive(frame, loop)
    except HloError as error:
        raise HloError(
            f'the number of passes of {loop.name} is not clear ({loop.op_name or "no name"}): '
            f'{error}'
        ) from error


def _derive(frame: Frame, loop: Instruction) -> int:
    condition = frame.into(loop, loop.called('condition')[0])
    body = frame.into(loop, loop.called('body')[0])
    where, test = condition, condition.computation.root
    while test.opcode in _SAME or test.opcode == 'fusion':
        where, test = _step_in(where, test)
    direction = test.attribute('direction')
    if test.opcode != 'compare' or direction not in _MIRRORED:
        raise HloError(f'its condition ends in {test.opcode} {direction}')
    left, right = (_value(where, operand) for operand in test.operands)
    if isinstance(right, _Counter):
        left, right, direction = right, left, _MIRRORED[direction]
    if not isinstance(left, _Counter) or isinstance(right, _Counter):
        raise HloError('its condition does not compare a counter with a number')
    start = _element(frame, loop.operands[0], left.index)
    step = _element(body, body.computation.root.name, left.index)
    if (
        isinstance(start, _Counter)
        or not isinstance(step, _Counter)
        or step.index != left.index
        or not step.plus
    ):
        raise HloError('its counter has no known start or step')
    return _passes(start + left.plus, right, step.plus, direction)


def _passes(start: int, bound: int, step: int, direction: str) -> int:
    if direction == 'NE':
        if (bound - start) % step or (bound - start) // step < 0:
            raise HloError(f'it steps by {step} from {start} past {bound}')
        return (bound - start) // step
    rising = direction in ('LT', 'LE')
    if rising != (step > 0):
        raise HloError(f'it steps by {step} while {direction} {bound}')
    distance = (bound - start if rising else start - bound) + (direction in ('LE', 'GE'))
    return max(0, -(-distance // abs(step)))


def _step_in(frame: Frame, instruction: Instruction) -> tuple[Frame, Instruction]:
    """From a fusion to its root, from a copy to what it copies."""
    if instruction.opcode == 'fusion':
        inner = frame.into(instruction, instruction.called('calls')[0])
        return inner, inner.computation.root
    return frame, frame.computation.operand(instruction, 0)


def _value(frame: Frame, name: str) -> int | _Counter:
    """The scalar of that name: a number, or what the innermost loop carries."""
    instruction = frame.computation.instructions[name]
    if instruction.opcode == 'constant':
        return int(instruction.literal)
    if instruction.opcode == 'parameter':
        return _value(*_argument(frame, instruction))
    if instruction.opcode in _SAME or instruction.opcode == 'fusion':
        inner, found = _step_in(frame, instruction)
        return _value(inner, found.name)
    if instruction.opcode == 'get-tuple-element':
        return _element(frame, instruction.operands[0], instruction.number('index'))
    if instruction.opcode in _ARITHMETIC:
        return _calculate(
            instruction.opcode, *(_value(frame, operand) for operand in instruction.operands)
        )
    raise HloError(f'{name} is the result of {instruction.opcode}')


def _calculate(opcode: str, a: int | _Counter, b: int | _Counter) -> int | _Counter:
    if isinstance(a, int) and isinstance(b, int):
        return _ARITHMETIC[opcode](a, b)
    if isinstance(b, _Counter) and opcode == 'add':
        a, b = b, a
    if isinstance(a, int) or isinstance(b, _Counter) or opcode == 'multiply':
        raise HloError(f'its counter takes part in a {opcode} that is no step')
    return _Counter(a.index, _ARITHMETIC[opcode](a.plus, b))


def _element(frame: Frame, name: str, index: int) -> int | _Counter:
    """Element `index` of the tuple of that name."""
    instruction = frame.computation.instructions[name]
    if instruction.opcode == 'tuple':
        return _value(frame, instruction.operands[index])
    in_loop = frame.by is not None and frame.by.opcode == 'while'
    if instruction.opcode == 'parameter' and frame.caller and frame.by and in_loop:
        body = frame.module.computations[frame.by.called('body')[0]]
        if _carried_unchanged(body, index):
            return _element(frame.caller, frame.by.operands[0], index)
        return _Counter(index, 0)
    if instruction.opcode == 'parameter':
        return _element(*_argument(frame, instruction), index)
    if instruction.opcode == 'copy-start':  # (result, source, context)
        return _value(frame, instruction.operands[0])
    if instruction.opcode in _SAME or instruction.opcode == 'fusion':
        inner, found = _step_in(frame, instruction)
        return _element(inner, found.name, index)
    if instruction.opcode == 'while':
        body = frame.module.computations[instruction.called('body')[0]]
        if _carried_unchanged(body, index):
            return _element(frame, instruction.operands[0], index)
    raise HloError(f'{name}, element {index}, is the result of {instruction.opcode}')


def _carried_unchanged(body: Computation, index: int) -> bool:
    root = body.root
    if root.opcode != 'tuple':
        return False
    source = body.operand(root, index)
    while source.opcode in _SAME:
        source = body.operand(source, 0)
    from_here = (
        source.opcode == 'get-tuple-element' and body.operand(source, 0).opcode == 'parameter'
    )
    return from_here and source.number('index') == index


def _argument(frame: Frame, parameter: Instruction) -> tuple[Frame, str]:
    """What a parameter of a fusion or call stands for, where it is called."""
    if frame.caller is None or frame.by is None or frame.by.opcode == 'while':
        raise HloError(f'it depends on {parameter.name}, an argument')
    return frame.caller, frame.by.operands[int(parameter.literal)]
