"""The text of a compiled program (HLO), read into computations, instructions and shapes.

The format is that of `jax.stages.Compiled.as_text()`: a computation is a block in braces, an
instruction a line `%name = shape opcode(%operand, ...), key=value, ...`.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

HBM, VMEM = 0, 1  # the memory space of a layout; others are small or on the host


class HloError(Exception):
    """The program has something that is not understood here: our mistake, not the user's."""


@dataclasses.dataclass(frozen=True)
class Array:
    """The type of one array; `space` is where it lies."""

    dtype: str
    dims: tuple[int, ...]
    space: int = HBM

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Without the padding of a tiled layout."""
        return -(-self.size * _bits(self.dtype) // 8)


Shape = Array | tuple['Shape', ...]


def arrays(shape: Shape) -> list[Array]:
    """The arrays of a tuple, however deep."""
    return (
        [shape] if isinstance(shape, Array) else [array for part in shape for array in arrays(part)]
    )


def elements(shape: Shape) -> tuple[Shape, ...]:
    """The parts of a tuple. Raises HloError where it is one array."""
    if isinstance(shape, Array):
        raise HloError(f'a tuple is expected, not {shape}')
    return shape


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line. `literal` is the text in its parentheses, `attributes` what follows."""

    name: str
    opcode: str
    shape: Shape
    operands: tuple[str, ...]
    literal: str
    attributes: str

    def attribute(self, key: str) -> str | None:
        """The value of `key=`, up to the next comma outside of brackets; without the brackets
        around it.
        """
        found = re.search(rf'(?:^|, ){key}=', self.attributes)
        if not found:
            return None
        value = self.attributes[found.end() : _end(self.attributes, found.end())]
        return value[1:-1] if value.startswith('{') else value

    def number(self, key: str) -> int:
        """The value of `key=`, a whole number. Raises HloError where there is none."""
        value = self.attribute(key)
        if value is None:
            raise HloError(f'{self.name} has no {key}')
        return int(value)

    def called(self, *keys: str) -> list[str]:
        """Names of the computations that these attributes name."""
        return [
            name for key in keys for name in re.findall(r'%([\w.-]+)', self.attribute(key) or '')
        ]

    @property
    def op_name(self) -> str:
        """Where in the Python program it comes from; empty where the compiler does not say."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ''


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in the order of the text."""

    name: str
    instructions: Mapping[str, Instruction]
    root: Instruction

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        """In the order of their numbers."""
        return sorted(
            (i for i in self.instructions.values() if i.opcode == 'parameter'),
            key=lambda i: int(i.literal),
        )

    @functools.cached_property
    def users(self) -> Mapping[str, Sequence[Instruction]]:
        """Who reads an instruction."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                found[operand].append(instruction)
        return found

    def operand(self, instruction: Instruction, index: int) -> Instruction:
        """An operand of one of its instructions."""
        return self.instructions[instruction.operands[index]]


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program for one device."""

    entry: Computation
    computations: Mapping[str, Computation]


def parse(text: str) -> Module:
    """Reads a module.

    Raises:
      HloError: the text has no entry computation, or a line that is no instruction.
    """
    computations, entry = {}, None
    text = re.sub(r'\n(?="|}})', '', text)  # the metadata of a kernel goes over several lines
    lines = iter(re.sub(r'/\*index=\d+\*/', '', text).splitlines())
    for line in lines:
        header = re.match(r'(ENTRY )?%?([\w.-]+) \(.*\{$', line)
        if header:
            computation = _computation(header[2], lines)
            computations[computation.name] = computation
            entry = computation if header[1] else entry
    if entry is None:
        raise HloError('the text of the program has no ENTRY computation')
    return Module(entry, computations)


def _computation(name: str, lines: Iterator[str]) -> Computation:
    instructions, root = {}, None
    for line in lines:
        if line.startswith('}'):
            break
        instruction = _instruction(line)
        instructions[instruction.name] = instruction
        root = instruction if line.lstrip().startswith('ROOT ') else root
    if root is None:
        raise HloError(f'computation {name} has no ROOT')
    return Computation(name, instructions, root)


def _instruction(line: str) -> Instruction:
    head = re.match(r'\s+(?:ROOT )?%?([\w.-]+) = ', line)
    if not head:
        raise HloError(f'not an instruction: {line[:200]}')
    shape, position = _shape(line, head.end())
    opcode = re.compile(r' ([\w-]+)\(').match(line, position)
    if not opcode:
        raise HloError(f'no opcode: {line[:200]}')
    end = _end(line, opcode.end())
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


def _shape(text: str, position: int) -> tuple[Shape, int]:
    """The shape that starts at a position, and where it ends."""
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
        part, position = _shape(text, position + (2 if text[position] == ',' else 0))
        parts.append(part)
    return tuple(parts), position + 1


def _end(text: str, position: int) -> int:
    """Where a list of operands or an attribute ends that starts here: at a comma or closing bracket
    that is not its own.
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


def _bits(dtype: str) -> int:
    if dtype in ('token', 'opaque'):
        return 0
    if dtype == 'pred':
        return 8
    digits = re.match(r'[a-z]+(\d+)', dtype)
    if not digits:
        raise HloError(f'unknown type {dtype}')
    return int(digits[1])
