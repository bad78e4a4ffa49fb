"""Writes files of torch.save without torch, opcode by opcode; tests/oracles reads them with torch.

`pickled` translates None, bool, int, str, tuple and dict, and the classes below.
"""

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

STORAGE_TYPES = {
    np.dtype(dtype): name
    for dtype, name in {
        np.float32: 'FloatStorage',
        np.float16: 'HalfStorage',
        ml_dtypes.bfloat16: 'BFloat16Storage',
        np.float64: 'DoubleStorage',
        np.int64: 'LongStorage',
        np.int32: 'IntStorage',
        np.uint8: 'ByteStorage',
        np.bool_: 'BoolStorage',
    }.items()
}
FORMATS = 'zip', 'legacy'


class Name(NamedTuple):
    """A global, such as `os.system`."""

    module: str
    attribute: str


class Call(NamedTuple):
    """A call of a function with arguments."""

    function: Any
    arguments: tuple


class Persistent(NamedTuple):
    """An object that the file stores outside of the pickle."""

    identifier: Any


class Opcodes(NamedTuple):
    """Opcodes as they are."""

    code: bytes


def pickled(value: Any) -> bytes:
    """Returns the opcodes that put a value on the stack."""
    if isinstance(value, Opcodes):
        return value.code
    if isinstance(value, Name):
        return f'c{value.module}\n{value.attribute}\n'.encode()
    if isinstance(value, Call):
        return pickled(value.function) + pickled(value.arguments) + b'R'
    if isinstance(value, Persistent):
        return pickled(value.identifier) + b'Q'
    if isinstance(value, tuple):
        return b'(' + b''.join(map(pickled, value)) + b't'
    if isinstance(value, dict):
        return b'}(' + b''.join(pickled(part) for item in value.items() for part in item) + b'u'
    # Without PROTO, BINPUT and STOP.
    return pickle.dumps(value, 2)[2:-1]


def describe_storage(key: str, array: np.ndarray, legacy: bool) -> Persistent:
    """Returns the storage of an array, which has all elements."""
    kind = Name('torch', STORAGE_TYPES[array.dtype])
    return Persistent(('storage', kind, key, 'cpu', array.size) + ((None,) if legacy else ()))


def describe_tensor(
    storage: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> Call:
    """Returns the call that makes a tensor; offset and strides are in elements."""
    hooks = Call(Name('collections', 'OrderedDict'), ())
    arguments = (storage, offset, shape, strides, False, hooks)
    return Call(Name('torch._utils', '_rebuild_tensor_v2'), arguments)


def describe_state(tensors: Mapping[str, np.ndarray], legacy: bool) -> tuple[Opcodes, dict]:
    """Returns a state dict as torch's modules return it, and its storages by key.

    Arrays that are views of one array share its storage.
    """
    storages: dict[str, np.ndarray] = {}
    described = {}
    for name, array in tensors.items():
        base = array if array.base is None else array.base
        key = str(id(base))
        storages[key] = base
        offset = array.ctypes.data - base.ctypes.data
        described[name] = describe_tensor(
            describe_storage(key, base, legacy),
            offset // array.itemsize,
            array.shape,
            tuple(stride // array.itemsize for stride in array.strides),
        )
    ordered = pickled(Call(Name('collections', 'OrderedDict'), ()))
    items = b''.join(pickled(part) for item in described.items() for part in item)
    metadata = pickled({'_metadata': {'': {'version': 1}}})
    return Opcodes(ordered + b'(' + items + b'u' + metadata + b'b'), storages


def write_torch_file(path: Path, tensors: Mapping[str, np.ndarray], kind: str = 'zip') -> Path:
    """Writes a state dict as torch.save does, in one of FORMATS; returns `path`."""
    return write_object(path, *describe_state(tensors, kind == 'legacy'), kind)


def write_object(
    path: Path, value: Any, storages: Mapping[str, np.ndarray], kind: str = 'zip'
) -> Path:
    """Writes any value, with its storages by key, in one of FORMATS; returns `path`."""
    code = b'\x80\x02' + pickled(value) + b'.'
    if kind == 'zip':
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('archive/data.pkl', code)
            archive.writestr('archive/byteorder', 'little')
            for key, array in storages.items():
                archive.writestr(f'archive/data/{key}', array.tobytes())
            archive.writestr('archive/version', '3\n')
        return path
    machine = {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {}}
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, machine)]
    parts += [code, pickle.dumps(list(storages), 2)]
    parts += [struct.pack('<q', array.size) + array.tobytes() for array in storages.values()]
    path.write_bytes(b''.join(parts))
    return path


def make_tensors() -> dict[str, np.ndarray]:
    """Returns tensors of each dtype, views and an empty tensor."""
    base = np.arange(48, dtype=np.float32).reshape(6, 8) / 7
    tensors = {dtype.name: np.arange(5).astype(dtype) for dtype in STORAGE_TYPES}
    return tensors | {
        'embeddings.weight': base,
        'tied': base,
        'transposed': base.T,
        'part': base[1:4, 2:7:2],
        'scalar': np.array(3.5, np.float32),
        'empty': np.zeros((0, 3), np.float32),
    }
