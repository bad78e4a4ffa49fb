"""Parses the text of a compiled program (HLO) into computations, instructions and shapes.

The text is that of `jax.stages.Compiled.as_text()`. A computation is a block in braces; an
instruction is a line `%name = shape opcode(%operand, ...), key=value, ...`.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

# Memory spaces in a layout. Other numbers are smaller memories, or host memory.
HBM = 0
VMEM = 1


class HloError(Exception):
    """The program has an unknown form: a bug in this package, not an error of the user."""


@dataclasses.dataclass(frozen=True)
class Array:
    """The type of an array.

    Attributes:
      dtype: HLO name of the element type, such as bf16.
      dims: sizes of its dimensions.
      space: memory space, such as HBM.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int = HBM

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Number of bytes, without the padding of a tiled layout."""
        return -(-self.size * _count_bits(self.dtype) // 8)


Shape = Array | tuple['Shape', ...]


def flatten_shape(shape: Shape) -> list[Array]:
    """Returns the arrays of a nested tuple as a flat list."""
    if isinstance(shape, Array):
        return [shape]
    return [array for part in shape for array in flatten_shape(part)]


def get_tuple_elements(shape: Shape) -> tuple[Shape, ...]:
    """Returns the elements of a tuple.

    Raises:
      HloError: the shape is an array.
    """
    if isinstance(shape, Array):
        raise HloError(f'expected a tuple, not {shape}')
    return shape


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction, one line of the text.

    Attributes:
      name: its name, without %.
      opcode: its operation, such as all-reduce.
      shape: type of its result.
      operands: names of its operands.
      literal: text in the parentheses; the value of a constant, the number of a parameter.
      attributes: text after the parentheses.
    """

    name: str
    opcode: str
    shape: Shape
    operands: tuple[str, ...]
    literal: str
    attributes: str

    def get_attribute(self, key: str) -> str | None:
        """Returns the value of an attribute, without enclosing braces; None if there is none."""
        found = re.search(rf'(?:^|, ){key}=', self.attributes)
        if not found:
            return None
        value = self.attributes[found.end() : _find_list_end(self.attributes, found.end())]
        return value[1:-1] if value.startswith('{') else value

    def get_number(self, key: str) -> int:
        """Returns the value of an integer attribute.

        Raises:
          HloError: there is no such attribute.
        """
        value = self.get_attribute(key)
        if value is None:
            raise HloError(f'{self.name} has no {key}')
        return int(value)

    def get_called_names(self, *keys: str) -> list[str]:
        """Returns the names of the computations that the attributes `keys` name."""
        return [
            name
            for key in keys
            for name in re.findall(r'%([\w.-]+)', self.get_attribute(key) or '')
        ]

    @property
    def op_name(self) -> str:
        """Path of the operation in the traced Python program; '' if the compiler dropped it."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ''


@dataclasses.dataclass(frozen=True)
class Computation:
    """A computation: a function of the program.

    Attributes:
      name: its name, without %.
      instructions: its instructions by name, in the order of the text.
      root: the instruction whose result it returns.
    """

    name: str
    instructions: Mapping[str, Instruction]
    root: Instruction

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        """Its parameters, in the order of their numbers."""
        return sorted(
            (i for i in self.instructions.values() if i.opcode == 'parameter'),
            key=lambda i: int(i.literal),
        )

    @functools.cached_property
    def users(self) -> Mapping[str, Sequence[Instruction]]:
        """Name of an instruction -> the instructions that read its result."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                found[operand].append(instruction)
        return found

    def get_operand(self, instruction: Instruction, index: int) -> Instruction:
        """Returns operand `index` of one of its instructions."""
        return self.instructions[instruction.operands[index]]


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program for one device.

    Attributes:
      entry: the computation that runs first.
      computations: all computations by name.
    """

    entry: Computation
    computations: Mapping[str, Computation]


def parse_program(text: str) -> Module:
    """Parses the text of a program.

    Raises:
      HloError: the text has no entry computation, or a line that is not an instruction.
    """
    computations = {}
    entry = None
    text = re.sub(r'\n(?="|}})', '', text)  # the metadata of a kernel spans several lines
    lines = iter(re.sub(r'/\*index=\d+\*/', '', text).splitlines())
    for line in lines:
        header = re.match(r'(ENTRY )?%?([\w.-]+) \(.*\{$', line)
        if header:
            computation = _parse_computation(header[2], lines)
            computations[computation.name] = computation
            if header[1]:
                entry = computation
    if entry is None:
        raise HloError('the text of the program has no ENTRY computation')
    return Module(entry, computations)


def _parse_computation(name: str, lines: Iterator[str]) -> Computation:
    instructions = {}
    root = None
    for line in lines:
        if line.startswith('}'):
            break
        instruction = _parse_instruction(line)
        instructions[instruction.name] = instruction
        if line.lstrip().startswith('ROOT '):
            root = instruction
    if root is None:
        raise HloError(f'computation {name} has no ROOT')
    return Computation(name, instructions, root)


def _parse_instruction(line: str) -> Instruction:
    head = re.match(r'\s+(?:ROOT )?%?([\w.-]+) = ', line)
    if not head:
        raise HloError(f'not an instruction: {line[:200]}')
    shape, position = _parse_shape(line, head.end())
    opcode = re.compile(r' ([\w-]+)\(').match(line, position)
    if not opcode:
        raise HloError(f'no opcode: {line[:200]}')
    end = _find_list_end(line, opcode.end())
    literal = line[opcode.end() : end]
    return Instruction(
        head[1],
        opcode[1],
        shape,
        tuple(re.findall(r'%([\w.-]+)', literal)),
        literal,
        line[end + 1 :].removeprefix(', '),
    )


_ARRAY = re.compile(r'([a-z]\w*)\[([^\]]*)\](\{[^}]*\})?')


def _parse_shape(text: str, position: int) -> tuple[Shape, int]:
    """Parses the shape that starts at a position; returns it and the position after it."""
    if text[position] != '(':
        found = _ARRAY.match(text, position)
        if not found:
            raise HloError(f'not a shape: {text[position : position + 80]}')
        dims = tuple(int(size.removeprefix('<=')) for size in found[2].split(',') if size)
        space = re.search(r'S\((\d+)\)', found[3] or '')
        return Array(found[1], dims, int(space[1]) if space else HBM), found.end()
    parts = []
    position += 1
    while text[position] != ')':
        part, position = _parse_shape(text, position + (2 if text[position] == ',' else 0))
        parts.append(part)
    return tuple(parts), position + 1


def _find_list_end(text: str, position: int) -> int:
    """Returns the end of a list of operands, or of an attribute, that starts at `position`.

    A list of operands ends at its closing parenthesis; an attribute ends at the next comma outside
    of brackets and quotes.
    """
    depth = 0
    for found in re.compile(r'"(?:[^"\\]|\\.)*"|[(){}\[\],]').finditer(text, position):
        mark = found[0]
        if mark in '({[':
            depth += 1
        elif mark in ')}]':
            depth -= 1
        if depth < 0 or (mark == ',' and not depth and text[position - 1] == '='):
            return found.start()
    return len(text)


def _count_bits(dtype: str) -> int:
    if dtype in ('token', 'opaque'):
        return 0
    if dtype == 'pred':
        return 8
    digits = re.match(r'[a-z]+(\d+)', dtype)
    if not digits:
        raise HloError(f'unknown type {dtype}')
    return int(digits[1])
