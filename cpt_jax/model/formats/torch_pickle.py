"""Pickles of torch.save, interpreted without torch and without executing anything.

A pickle is a program for a stack machine. This interpreter has only the instructions that build
constants, containers and tensors. It imports no module and calls no object that a pickle names: a
name is either in the tables below, where it stands for a function of this file or a dtype, or the
pickle is refused. torch's own reader with `weights_only=True` has the same idea
(torch/_weights_only_unpickler.py, 2.13).
"""

import math
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple, cast

import ml_dtypes
import numpy as np

# Limits that no file of weights comes near: a tensor takes about 40 opcodes, and the longest
# argument is its name.
_MAX_OPCODES = 10_000_000
_MAX_ARGUMENT_BYTES = 65_536
_MAX_DIMENSIONS = 32


class Storage(NamedTuple):
    """Memory that one or more tensors are views of.

    Attributes:
      key: name of the storage in the file.
      dtype: dtype of its elements.
      elements: number of its elements.
    """

    key: str
    dtype: np.dtype
    elements: int


class TensorView(NamedTuple):
    """A tensor: a part of a storage. All numbers are in elements.

    Attributes:
      storage: storage of the elements.
      offset: index of the first element in the storage.
      shape: size of each dimension.
      strides: distance in the storage between neighbours along each dimension.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements of the tensor."""
        return math.prod(self.shape)

    @property
    def span(self) -> int:
        """Number of elements of the storage from the tensor's first to its last."""
        if not self.elements:
            return 0
        return 1 + sum(
            (size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True)
        )


class _StorageType(NamedTuple):
    dtype: np.dtype


class _Function(NamedTuple):
    call: Callable[..., Any]


def _make_dict() -> dict[str, Any]:
    return {}


def _make_tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any,
    backward_hooks: Any,
    metadata: Any = None,
) -> TensorView:
    del requires_grad, backward_hooks  # They do not change the values.
    if metadata:
        raise ValueError('it has a tensor that is conjugated or negated when it is read')
    if type(storage) is not Storage or not _are_sizes((offset,)):
        raise ValueError('it has a tensor without a storage')
    if not _are_sizes(shape) or not _are_sizes(strides) or len(shape) != len(strides):
        raise ValueError('it has a tensor whose shape or strides are not whole numbers')
    if len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f'it has a tensor with {len(shape)} dimensions')
    tensor = TensorView(storage, offset, shape, strides)
    if offset + tensor.span > storage.elements:
        raise ValueError(
            f'it has a tensor of shape {list(shape)} that is not within its storage of '
            f'{storage.elements} elements'
        )
    return tensor


def _make_parameter(tensor: Any, requires_grad: Any, backward_hooks: Any) -> TensorView:
    del requires_grad, backward_hooks
    if type(tensor) is not TensorView:
        raise ValueError('it has a parameter that is not a tensor')
    return tensor


_DTYPES = {
    'FloatStorage': np.float32,
    'HalfStorage': np.float16,
    'BFloat16Storage': ml_dtypes.bfloat16,
    'DoubleStorage': np.float64,
    'LongStorage': np.int64,
    'IntStorage': np.int32,
    'ShortStorage': np.int16,
    'CharStorage': np.int8,
    'ByteStorage': np.uint8,
    'BoolStorage': np.bool_,
}
# Everything that a pickle may name.
_GLOBALS: Mapping[str, _Function | _StorageType] = {
    'collections.OrderedDict': _Function(_make_dict),
    'torch._utils._rebuild_tensor_v2': _Function(_make_tensor),
    'torch._utils._rebuild_parameter': _Function(_make_parameter),
    **{f'torch.{name}': _StorageType(np.dtype(dtype)) for name, dtype in _DTYPES.items()},
}
_CONSTANTS: Mapping[str, Any] = {
    'NONE': None,
    'NEWTRUE': True,
    'NEWFALSE': False,
    'EMPTY_TUPLE': (),
}
_LITERALS = {'BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT', 'BINUNICODE', 'SHORT_BINSTRING'}
_TUPLES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}


def read_pickle(file: BinaryIO, end: int) -> Any:
    """Reads the pickle at the position of a file, and leaves the position after it.

    Args:
      file: open file.
      end: position at which the pickle must have ended.

    Returns:
      None, or a bool, int, float, str, tuple, list, dict (also for an OrderedDict), Storage or
      TensorView.

    Raises:
      ValueError: the pickle is cut short, or has an opcode or a name that tensors do not need.
    """
    machine = _Machine()
    part = cast(BinaryIO, _Part(file, end))
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(part)):
            if count == _MAX_OPCODES:
                raise ValueError(f'its pickle has more than {_MAX_OPCODES:,} opcodes')
            machine.execute(opcode.name, argument)
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f'its pickle is damaged ({type(error).__name__})') from None
    if len(machine.stack) != 1:
        raise ValueError('its pickle is damaged: it has no single result')
    return machine.stack[0]


class _Part:
    """The bytes of a file up to `end`, with the methods of a file that `genops` calls.

    A read of more than a tensor needs is refused.
    """

    def __init__(self, file: BinaryIO, end: int):
        self._file = file
        self._end = end

    def read(self, count: int) -> bytes:
        if count > _MAX_ARGUMENT_BYTES:
            raise ValueError(f'its pickle has an argument of {count:,} bytes')
        return self._file.read(min(count, self._left))

    def readline(self) -> bytes:
        return self._file.readline(min(_MAX_ARGUMENT_BYTES, self._left))

    def tell(self) -> int:
        return self._file.tell()

    @property
    def _left(self) -> int:
        return max(0, self._end - self.tell())


class _Machine:
    """The stack machine of pickles.

    Attributes:
      stack: values since the latest mark.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._below_marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def execute(self, name: str, argument: Any) -> None:
        """Executes one opcode; raises ValueError if it is not one that tensors need."""
        stack = self.stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == 'EMPTY_LIST':
            stack.append([])
        elif name == 'EMPTY_DICT':
            stack.append({})
        elif name in ('BINPUT', 'LONG_BINPUT'):
            self._memo[argument] = stack[-1]
        elif name in ('BINGET', 'LONG_BINGET'):
            stack.append(self._memo[argument])
        elif name in _TUPLES:
            stack.append(_pop_tuple(stack, _TUPLES[name]))
        elif name == 'MARK':
            self._below_marks.append(stack)
            self.stack = []
        elif name == 'TUPLE':
            items = self._pop_marked()
            self.stack.append(tuple(items))
        elif name == 'APPEND':
            item = stack.pop()
            _expect(stack[-1], list).append(item)
        elif name == 'APPENDS':
            items = self._pop_marked()
            _expect(self.stack[-1], list).extend(items)
        elif name == 'SETITEM':
            value, key = stack.pop(), stack.pop()
            _set_items(stack[-1], [key, value])
        elif name == 'SETITEMS':
            items = self._pop_marked()
            _set_items(self.stack[-1], items)
        elif name == 'GLOBAL':
            stack.append(_find_global(argument.replace(' ', '.', 1)))
        elif name == 'BINPERSID':
            stack.append(_make_storage(stack.pop()))
        elif name == 'REDUCE':
            arguments = _expect(stack.pop(), tuple)
            stack.append(_expect(stack.pop(), _Function).call(*arguments))
        elif name == 'BUILD':
            # The attribute `_metadata` of a state dict, with versions of its modules.
            stack.pop()
            _expect(stack[-1], dict)
        elif name not in ('PROTO', 'STOP'):
            raise ValueError(
                f'its pickle has the opcode {name}, which tensors do not need: nothing in it was '
                f'executed'
            )

    def _pop_marked(self) -> list[Any]:
        """Returns the values since the latest mark, and removes them and the mark."""
        items = self.stack
        self.stack = self._below_marks.pop()
        return items


def _find_global(name: str) -> _Function | _StorageType:
    if name not in _GLOBALS:
        # ascii: a name may contain control characters.
        raise ValueError(
            f'its pickle names {ascii(name[:100])}, which is not part of a readable tensor: '
            f'nothing in it was executed'
        )
    return _GLOBALS[name]


def _make_storage(persistent_id: Any) -> Storage:
    """Returns the storage of ('storage', type, key, device, elements).

    The format before torch 1.6 appends a view, which is None.
    """
    if len(_expect(persistent_id, tuple)) not in (5, 6) or persistent_id[0] != 'storage':
        raise ValueError('its pickle refers to something that is not a storage')
    _, storage_type, key, _, elements, *views = persistent_id
    if views not in ([], [None]) or not _are_sizes((elements,)):
        raise ValueError('it has a storage that is a view, or without a size')
    return Storage(_expect(key, str), _expect(storage_type, _StorageType).dtype, elements)


def _set_items(container: Any, keys_and_values: list[Any]) -> None:
    keys = keys_and_values[::2]
    # Hashing nested tuples can take forever.
    if any(type(key) not in (str, int) for key in keys):
        raise ValueError('its pickle has a dict with a key that is not text')
    _expect(container, dict).update(zip(keys, keys_and_values[1::2], strict=True))


def _are_sizes(values: Any) -> bool:
    """Whether a value is a tuple of whole numbers that can be positions in a file."""
    return type(values) is tuple and all(
        type(value) is int and 0 <= value < 2**63 for value in values
    )


def _expect(value: Any, kind: type) -> Any:
    """Returns a value of exactly this type; raises ValueError for another."""
    if type(value) is not kind:
        raise ValueError(
            f'its pickle is damaged: {kind.__name__} expected, not {type(value).__name__}'
        )
    return value


def _pop_tuple(stack: list[Any], count: int) -> tuple[Any, ...]:
    if len(stack) < count:
        raise IndexError
    items = tuple(stack[-count:])
    del stack[-count:]
    return items
