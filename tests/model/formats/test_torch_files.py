"""pytorch_model.bin is read without torch, and nothing in it is executed.

tests/oracles/test_torch_files.py compares with torch.load.
"""

import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cpt_jax.model.formats.torch_files import TorchFile
from cpt_jax.runtime.errors import UserError
from tests.model.formats.torch_inputs import (
    FORMATS,
    Call,
    Name,
    Opcodes,
    Persistent,
    describe_storage,
    describe_tensor,
    make_tensors,
    pickled,
    write_object,
    write_torch_file,
)

DATA = np.arange(12, dtype=np.float32)


def check_refused(path: Path, line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        TorchFile(path)
    assert str(caught.value).startswith(f'{path}: cannot be read: ')
    assert str(caught.value).isprintable()


@pytest.mark.parametrize('kind', FORMATS)
def test_each_dtype_and_view_is_read(tmp_path, kind):
    expected = make_tensors()
    file = TorchFile(write_torch_file(tmp_path / 'pytorch_model.bin', expected, kind))
    assert list(file.tensors) == list(expected)
    for name, array in expected.items():
        found = file.read(name)
        assert found.dtype == array.dtype and found.flags.c_contiguous
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize('kind', FORMATS)
def test_parameters_are_tensors(tmp_path, kind):
    storage = describe_storage('0', DATA, kind == 'legacy')
    parameter = Call(
        Name('torch._utils', '_rebuild_parameter'),
        (describe_tensor(storage, 2, (3, 3), (3, 1)), True, None),
    )
    path = write_object(tmp_path / 'a.bin', {'weight': parameter}, {'0': DATA}, kind)
    np.testing.assert_array_equal(TorchFile(path).read('weight'), DATA[2:11].reshape(3, 3))


def list_attacks(marker: Path) -> dict[str, tuple[object, str]]:
    """Returns (value, expected message) of pickles that execute something when loaded."""
    shell = (f'touch {marker}',)
    python = (f'open({str(marker)!r}, "w")',)
    get = Name('builtins', 'getattr')
    return {
        'function': (Call(Name('os', 'system'), shell), "'os.system'"),
        'builtin': (Call(Name('builtins', 'eval'), python), "'builtins.eval'"),
        'python 2': (Call(Name('__builtin__', 'eval'), python), "'__builtin__.eval'"),
        'attribute': (
            Call(Call(get, (Name('torch', 'FloatStorage'), '__init__')), shell),
            "'builtins.getattr'",
        ),
        'dotted': (Call(Name('torch', 'os.system'), shell), "'torch.os.system'"),
        'inside': (Call(Name('torch.serialization', 'os'), shell), "'torch.serialization.os'"),
        'import': (Name('antigravity', 'x'), "'antigravity.x'"),
        'control characters': (Name('os\x1b[2J', 'system'), r"'os\\x1b\[2J.system'"),
        'loader': (Call(Name('torch', 'load'), shell), "'torch.load'"),
        'stack global': (Opcodes(pickled('os') + pickled('system') + b'\x93'), 'STACK_GLOBAL'),
        'instance': (Opcodes(b'(' + pickled(shell[0]) + b'ios\nsystem\n'), 'opcode INST'),
        'object': (Opcodes(b'(' + pickled(Name('torch', 'FloatStorage')) + b'o'), 'opcode OBJ'),
        'new object': (Opcodes(pickled(Name('torch', 'IntStorage')) + b')\x81'), 'opcode NEWOBJ'),
        'extension': (Opcodes(b'\x82\x01'), 'opcode EXT1'),
        'call of a dtype': (Call(Name('torch', 'FloatStorage'), shell), '_Function expected'),
        'call of text': (Call('os.system', shell), '_Function expected, not str'),
        'state of a function': (
            Opcodes(pickled(Name('collections', 'OrderedDict')) + pickled({'call': 1}) + b'b'),
            'dict expected, not _Function',
        ),
        'module': (Persistent(('module', 'os', 'os.py', 'source')), 'is not a storage'),
    }


@pytest.mark.parametrize('kind', FORMATS)
@pytest.mark.parametrize('attack', list_attacks(Path('marker')))
def test_nothing_is_executed(tmp_path, attack, kind):
    value, line = list_attacks(tmp_path / 'marker')[attack]
    before = set(sys.modules)
    check_refused(write_object(tmp_path / 'a.bin', {'weight': value}, {}, kind), line)
    assert not (tmp_path / 'marker').exists()
    assert not {'antigravity', 'torch'} & (set(sys.modules) - before)


BEYOND = {
    'offset': (13, (), ()),
    'end': (4, (3, 3), (3, 1)),
    'absurd shape': (0, (2**40, 2**40), (1, 1)),
    'absurd stride': (0, (2,), (2**60,)),
    'negative offset': (-1, (2,), (1,)),
    'negative stride': (3, (2,), (-1,)),
    'negative size': (0, (-1,), (1,)),
    'strides of another length': (0, (2, 2), (1,)),
    'more dimensions than numpy has': (0, (1,) * 70, (1,) * 70),
    'text': (0, ('2',), (1,)),
    'absurd number': (0, (1 << 500,), (1,)),
}


@pytest.mark.parametrize('kind', FORMATS)
@pytest.mark.parametrize('case', BEYOND)
def test_tensor_outside_of_its_storage_is_refused(tmp_path, case, kind):
    tensor = describe_tensor(describe_storage('0', DATA, kind == 'legacy'), *BEYOND[case])
    path = write_object(tmp_path / 'a.bin', {'weight': tensor}, {'0': DATA}, kind)
    tracemalloc.start()
    check_refused(path, 'it has a tensor')
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


@pytest.mark.parametrize('kind', FORMATS)
def test_absurd_sizes_allocate_nothing(tmp_path, kind):
    """Their elements are within the storage, or there are none."""
    storage = describe_storage('0', DATA, kind == 'legacy')
    views = {
        'repeated': (0, (2**40, 2**20), (0, 0)),
        'none': (0, (2**50, 2**50, 0), (2**62, 1, 1)),
    }
    tensors = {name: describe_tensor(storage, *view) for name, view in views.items()}
    file = TorchFile(write_object(tmp_path / 'a.bin', tensors, {'0': DATA}, kind))
    for name, line in (('repeated', 'repeats the elements'), ('none', 'cannot be read')):
        with pytest.raises(UserError, match=f'a.bin: {name} {line}'):
            file.read(name)


def test_storage_that_is_not_in_the_file_is_refused(tmp_path):
    large = np.zeros(100, np.float32)
    for kind in FORMATS:
        tensor = describe_tensor(describe_storage('0', large, kind == 'legacy'), 0, (3,), (1,))
        for storages in ({'0': DATA}, {'1': DATA}, {}):
            path = write_object(tmp_path / 'a.bin', {'weight': tensor}, storages, kind)
            check_refused(path, r"the data of storage '\d' are missing")


@pytest.mark.parametrize('kind', FORMATS)
def test_file_that_is_cut_short_is_refused(tmp_path, kind):
    path = write_torch_file(tmp_path / 'a.bin', {'weight': DATA, 'bias': DATA[:2]}, kind)
    whole = path.read_bytes()
    for size in (*range(0, len(whole), 29), len(whole) - 1):
        path.write_bytes(whole[:size])
        check_refused(path, 'cannot be read')


OTHERS = {
    'list': (Opcodes(b']'), 'holds no state dict'),
    'whole checkpoint': ({'model': {}, 'epoch': 3}, "'model' is not a tensor"),
    'number as a name': ({3: describe_tensor(describe_storage('0', DATA, False), 0, (), ())}, '3 '),
    'dict of tuples': ({('a',): 1}, 'a dict with a key that is not text'),
    'nothing on the stack': (Opcodes(b'0'), 'opcode POP'),
    'no item': (Opcodes(b'}(' + pickled('a') + b'u'), 'cannot be read'),
    'no mark': (Opcodes(b'}u'), 'is damaged'),
    'no memo': (Opcodes(b'h\x07'), 'is damaged'),
    'two values': (Opcodes(b'}}'), 'no single result'),
    'long text': ({'a' * 70_000: 1}, 'an argument of 70,000 bytes'),
    'wrong arguments': (Call(Name('torch._utils', '_rebuild_tensor_v2'), (1,)), 'is damaged'),
    'no storage': (describe_tensor(3, 0, (), ()), 'without a storage'),
}


@pytest.mark.parametrize('case', OTHERS)
def test_other_content_is_refused(tmp_path, case):
    value, line = OTHERS[case]
    check_refused(write_object(tmp_path / 'a.bin', value, {'0': DATA}), line)


def test_other_zip_archives_are_refused(tmp_path):
    path = write_torch_file(tmp_path / 'a.bin', {'weight': DATA})
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}

    def write(content: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
        with zipfile.ZipFile(path, 'w', compression) as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        return path

    check_refused(write(content, zipfile.ZIP_DEFLATED), 'compressed')
    check_refused(write(content | {'archive/byteorder': b'big'}), 'little-endian')
    check_refused(write({'data.txt': b''}), 'not one of torch.save')
    check_refused(write(content | {'other/data.pkl': b''}), 'not one of torch.save')
    path.write_bytes(b'version https://git-lfs.github.com/spec/v1\n')
    check_refused(path, 'not a file of torch.save')
