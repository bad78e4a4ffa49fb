"""The header of a GGUF file: metadata, and the type, shape and place of each tensor.

Every count and offset is compared with the size of the file before anything of this size is
allocated. The reader of the gguf library does not do this, and makes several numpy arrays for each
token of the vocabulary: 19 s and 700 MB for Gemma 3's 262,144.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGMLQuantizationType,
    GGUFValueType,
    dequantize,
)

from cpt_jax.runtime.errors import UserError

MAGIC = b'GGUF'
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
# Formats of struct for values of a fixed size.
_SCALARS = {
    GGUFValueType.UINT8: 'B',
    GGUFValueType.INT8: 'b',
    GGUFValueType.UINT16: 'H',
    GGUFValueType.INT16: 'h',
    GGUFValueType.UINT32: 'I',
    GGUFValueType.INT32: 'i',
    GGUFValueType.FLOAT32: 'f',
    GGUFValueType.BOOL: '?',
    GGUFValueType.UINT64: 'Q',
    GGUFValueType.INT64: 'q',
    GGUFValueType.FLOAT64: 'd',
}
# The fewest bytes that a key with its value, a tensor's description and a string take.
_MIN_PAIR = 8 + 4 + 1
_MIN_TENSOR = 8 + 4 + 4 + 8
_MIN_STRING = 8


class GgufTensor(NamedTuple):
    """Description of a tensor.

    Attributes:
      kind: type of its elements or blocks of elements.
      shape: size of each dimension, the last of which is contiguous.
      offset: position of its first byte in the file.
      row_bytes: number of bytes of the elements along the last dimension.
    """

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    row_bytes: int

    @property
    def rows(self) -> int:
        """Number of elements of all dimensions but the last."""
        return math.prod(self.shape[:-1])


class GgufHeader(NamedTuple):
    """Header of a GGUF file.

    Attributes:
      path: the file.
      metadata: values by key: bool, int, float, str, a list of str or an array of numbers.
      tensors: tensors by name.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_gguf_header(path: Path) -> GgufHeader:
    """Reads the header of a GGUF file.

    Raises:
      UserError: the file cannot be read, is cut short or damaged, or has a type of tensor that is
        not supported.
    """
    try:
        with path.open('rb') as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise ValueError('is not a GGUF file')
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(path, _Cursor(data))
    except OSError as error:
        raise UserError(f'{path}: cannot be read: {error.strerror or error}') from None
    except ValueError as error:
        raise UserError(f'{path}: {error}') from None


class _Cursor:
    """A position in a file, from which values are read one after the other.

    Attributes:
      position: index of the next byte.
      size: size of the file in bytes.
    """

    def __init__(self, data: mmap.mmap):
        self._data = data
        self.position = len(MAGIC)
        self.size = len(data)

    def read(self, format: str) -> Any:
        """Reads one value, in a format of struct."""
        return struct.unpack(f'<{format}', self.read_bytes(struct.calcsize(format)))[0]

    def read_bytes(self, count: int) -> bytes:
        """Reads `count` bytes; raises ValueError, and allocates nothing, if there are fewer."""
        self.check_holds(count, 1)
        start = self.position
        self.position += count
        return self._data[start : self.position]

    def read_string(self) -> str:
        """Reads a string: number of its bytes, UTF-8."""
        data = self.read_bytes(self.read('Q'))
        # Pieces of a vocabulary may be parts of a character.
        return data.decode('utf-8', 'replace')

    def check_holds(self, count: int, least_bytes: int) -> None:
        """Raises ValueError unless `count` items of at least this size fit into the file."""
        if count * least_bytes > self.size - self.position:
            raise ValueError(
                f'is cut short or damaged: {count:,} items of {least_bytes} bytes or more from '
                f'byte {self.position:,} on, in a file of {self.size:,} bytes: copy it again'
            )


def _parse(path: Path, cursor: _Cursor) -> GgufHeader:
    version = cursor.read('I')
    if version not in _VERSIONS:
        hint = 'its numbers are in big-endian order' if version & 0xFFFF == 0 else f'{version}'
        raise ValueError(f'GGUF version {hint}: supported are {_VERSIONS}, little-endian')
    tensor_count, pair_count = cursor.read('Q'), cursor.read('Q')
    cursor.check_holds(pair_count, _MIN_PAIR)
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = cursor.read_string()
        if not key.isprintable() or key in metadata:
            raise ValueError(f'is damaged: {ascii(key[:100])} is not a key, or there twice')
        metadata[key] = _read_value(cursor, key, cursor.read('I'))
    cursor.check_holds(tensor_count, _MIN_TENSOR)
    described = {}
    for _ in range(tensor_count):
        name = cursor.read_string()
        if not name.isprintable() or name in described:
            raise ValueError(f'is damaged: {ascii(name[:100])} is no tensor name, or there twice')
        described[name] = _read_tensor(cursor, name)
    alignment = metadata.get('general.alignment', GGUF_DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1:
        raise ValueError(f'is damaged: general.alignment={alignment!r}')
    start = -(-cursor.position // alignment) * alignment
    tensors = {
        name: tensor._replace(offset=start + tensor.offset) for name, tensor in described.items()
    }
    _check_data(tensors, start, cursor.size)
    return GgufHeader(path, metadata, tensors)


def _read_value(cursor: _Cursor, key: str, kind: int) -> Any:
    """Reads the value of a key; kind: number of its type."""
    if kind in _SCALARS:
        return cursor.read(_SCALARS[GGUFValueType(kind)])
    if kind == GGUFValueType.STRING:
        return cursor.read_string()
    if kind != GGUFValueType.ARRAY:
        raise ValueError(f'is damaged: {key} has the type {kind}, which does not exist')
    item_kind, count = cursor.read('I'), cursor.read('Q')
    if item_kind == GGUFValueType.STRING:
        cursor.check_holds(count, _MIN_STRING)
        return [cursor.read_string() for _ in range(count)]
    if item_kind not in _SCALARS:
        raise ValueError(f'{key} is an array of type {item_kind}, which is not supported')
    dtype = np.dtype(f'<{_SCALARS[GGUFValueType(item_kind)]}')
    return np.frombuffer(cursor.read_bytes(count * dtype.itemsize), dtype)


def _read_tensor(cursor: _Cursor, name: str) -> GgufTensor:
    """Reads the description of a tensor. The offset is relative to the data of all tensors."""
    dimensions = cursor.read('I')
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise ValueError(f'is damaged: {name} has {dimensions} dimensions')
    # GGUF lists the contiguous dimension first.
    shape = tuple(cursor.read('Q') for _ in range(dimensions))[::-1]
    number, offset = cursor.read('I'), cursor.read('Q')
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        raise ValueError(f'{name} has the type {number}, which is not known') from None
    elements, block_bytes = GGML_QUANT_SIZES[kind]
    if 0 in shape or shape[-1] % elements:
        raise ValueError(f'is damaged: {name} of type {kind.name} has the shape {list(shape)}')
    return GgufTensor(kind, shape, offset, shape[-1] // elements * block_bytes)


def _check_data(tensors: Mapping[str, GgufTensor], start: int, size: int) -> None:
    """Checks that all tensors are in the file, do not overlap, and can be dequantized.

    Args:
      tensors: tensors by name.
      start: position of their data.
      size: size of the file in bytes.
    """
    end = start
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
        if tensor.offset < end:
            raise ValueError(f'is damaged: the data of {name} overlap with another tensor')
        end = tensor.offset + tensor.rows * tensor.row_bytes
        if end > size:
            raise ValueError(
                f'is cut short: {name} ends at byte {end:,}, the file at {size:,}: copy it again'
            )
    for kind in {tensor.kind for tensor in tensors.values()}:
        _, block_bytes = GGML_QUANT_SIZES[kind]
        try:
            dequantize(np.zeros((1, block_bytes), np.uint8), kind)
        except NotImplementedError:
            name = next(name for name, tensor in tensors.items() if tensor.kind == kind)
            raise ValueError(f'{name} has the type {kind.name}, which is not supported') from None
