"""The pytorch_model.bin files of a directory, read without torch and without executing anything."""

import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cpt_jax.model.formats.safetensors_files import TensorFiles
from cpt_jax.model.formats.torch_pickle import Storage, TensorView, read_pickle
from cpt_jax.runtime.errors import UserError

# Values with which a file begins in the format before torch 1.6 (torch/serialization.py).
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_ZIP_SIGNATURE = b'PK\x03\x04'
# Header of a file in a zip archive: 26 bytes, then the lengths of its name and of its extra field.
_ZIP_HEADER = struct.Struct('<4s22xHH')


class TorchFiles(TensorFiles):
    """All tensors of pytorch_model.bin, or of the shards of its index, by name."""

    SINGLE = 'pytorch_model.bin'
    INDEX = 'pytorch_model.bin.index.json'

    def __init__(self, directory: Path):
        """Opens the files, without reading a tensor.

        Raises:
          UserError: both are missing, a shard is missing, or a file is damaged or holds anything
            but tensors.
        """
        self._files: dict[Path, TorchFile] = {}
        super().__init__(directory)

    def _read_from(self, path: Path, name: str) -> np.ndarray:
        return self._files[path].read(name)

    def read_shape(self, name: str) -> list[int]:
        """Returns the shape of a tensor, without reading it."""
        return list(self._files[self._path_by_name[name]].tensors[name].shape)

    def _list_names(self, path: Path) -> list[str]:
        self._files[path] = TorchFile(path)
        return list(self._files[path].tensors)


class TorchFile:
    """A state dict that torch.save wrote, in the zip format or in the one before torch 1.6.

    Attributes:
      tensors: each tensor's part of a storage, by name.
    """

    def __init__(self, path: Path):
        """Opens the file, without reading a tensor.

        Raises:
          UserError: the file is damaged or holds anything but tensors.
        """
        self._path = path
        try:
            with path.open('rb') as file:
                is_zip = file.read(len(_ZIP_SIGNATURE)) == _ZIP_SIGNATURE
                open_format = _open_zip if is_zip else _open_legacy
                # Offset of each storage in bytes, by key.
                self.tensors, self._offsets = open_format(file, path.stat().st_size)
        except (ValueError, OSError, struct.error) as error:
            raise UserError(f'{path}: cannot be read: {error}') from None

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor, in the dtype of the file.

        Raises:
          UserError: the tensor has several times the elements of its storage, or the file changed.
        """
        tensor = self.tensors[name]
        dtype = tensor.storage.dtype
        if tensor.elements > tensor.storage.elements:
            raise UserError(
                f'{self._path}: {name} repeats the elements of its storage, which is not '
                f'supported: save a copy, its clone()'
            )
        offset = self._offsets[tensor.storage.key] + tensor.offset * dtype.itemsize
        data = np.fromfile(self._path, np.uint8, tensor.span * dtype.itemsize, offset=offset)
        if len(data) < tensor.span * dtype.itemsize:
            raise UserError(f'{self._path}: {name} is cut short: copy the file again')
        strides = [
            dtype.itemsize * stride if size > 1 else 0
            for size, stride in zip(tensor.shape, tensor.strides, strict=True)
        ]
        try:
            array = np.ndarray(tensor.shape, dtype, data, strides=strides)
        except (ValueError, OverflowError) as error:
            # It has no elements, but sizes whose product is too large.
            raise UserError(f'{self._path}: {name} cannot be read: {error}') from None
        return array if array.flags.c_contiguous else array.copy()


def _open_zip(file: BinaryIO, size: int) -> tuple[dict[str, TensorView], dict[str, int]]:
    """Returns the tensors, and the offset of each storage, of a file in the zip format.

    The archive has NAME/data.pkl with the state dict and NAME/data/KEY with each storage.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
        raise ValueError(f'it is damaged or cut short ({error}): copy it again') from None
    names = [entry.filename for entry in entries]
    roots = [name.removesuffix('data.pkl') for name in names if name.endswith('/data.pkl')]
    if len(roots) != 1 or len(set(names)) < len(names):
        raise ValueError('it is a zip archive, but not one of torch.save')
    by_name = dict(zip(names, entries, strict=True))
    (root,) = roots
    if byte_order := by_name.get(f'{root}byteorder'):
        file.seek(_find_data(file, byte_order, size))
        _check_byte_order(file.read(6) == b'little')
    pickled = by_name[f'{root}data.pkl']
    start = _find_data(file, pickled, size)
    file.seek(start)
    tensors = _check_state_dict(read_pickle(file, start + pickled.file_size))
    offsets = {}
    for storage in {tensor.storage for tensor in tensors.values()}:
        entry = by_name.get(f'{root}data/{storage.key}')
        if entry is None or entry.file_size != storage.elements * storage.dtype.itemsize:
            raise ValueError(f'the data of storage {ascii(storage.key)} are missing or cut short')
        offsets[storage.key] = _find_data(file, entry, size)
    return tensors, offsets


def _find_data(file: BinaryIO, entry: zipfile.ZipInfo, size: int) -> int:
    """Returns the offset of the data of an uncompressed file in a zip archive."""
    is_encrypted = entry.flag_bits & 1
    if entry.compress_type != zipfile.ZIP_STORED or is_encrypted:
        raise ValueError(f'{ascii(entry.filename)} in it is compressed or encrypted')
    file.seek(entry.header_offset)
    signature, *lengths = _ZIP_HEADER.unpack(file.read(_ZIP_HEADER.size))
    start = entry.header_offset + _ZIP_HEADER.size + sum(lengths)
    if signature != _ZIP_SIGNATURE or start + entry.file_size > size:
        raise ValueError(f'{ascii(entry.filename)} in it is damaged or cut short')
    return start


def _open_legacy(file: BinaryIO, size: int) -> tuple[dict[str, TensorView], dict[str, int]]:
    """Returns the tensors, and the offset of each storage, of a file as before torch 1.6.

    Five pickles: magic number, version, properties of the machine, state dict and keys of the
    storages. Then each storage: number of its elements (int64) and its elements.
    """
    file.seek(0)
    try:
        magic_number = read_pickle(file, min(size, 64))
    except ValueError:
        magic_number = None
    if magic_number != _MAGIC_NUMBER or read_pickle(file, size) != _PROTOCOL_VERSION:
        raise ValueError('it is not a file of torch.save, or is cut short: copy it again')
    machine = read_pickle(file, size)
    _check_byte_order(type(machine) is dict and machine.get('little_endian') is True)
    tensors = _check_state_dict(read_pickle(file, size))
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    keys = read_pickle(file, size)
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise ValueError('it has no list of storages')
    offsets = {}
    for key in keys:
        elements = int.from_bytes(file.read(8), 'little')
        storage = storages.get(key, Storage(key, np.dtype(np.uint8), -1))
        offsets[key] = file.tell()
        end = offsets[key] + elements * storage.dtype.itemsize
        if elements != storage.elements or end > size:
            raise ValueError(f'the data of storage {ascii(key)} are missing or cut short')
        file.seek(end)
    for storage in {tensor.storage for tensor in tensors.values()}:
        if storage != storages[storage.key] or storage.key not in offsets:
            raise ValueError(f'the data of storage {ascii(storage.key)} are missing')
    return tensors, offsets


def _check_state_dict(state: Any) -> dict[str, TensorView]:
    """Returns a state dict; raises ValueError if it holds anything but tensors."""
    if type(state) is not dict:
        raise ValueError('it holds no state dict (tensors by name)')
    for name, value in state.items():
        if type(name) is not str or not name.isprintable() or type(value) is not TensorView:
            raise ValueError(
                f'its {ascii(name)} is not a tensor: save the state dict of the model alone'
            )
    return state


def _check_byte_order(is_little: bool) -> None:
    if not is_little:
        raise ValueError('its numbers are not in little-endian order')
