"""What goldens hold comes back, and no test but those of tests/oracles imports another library."""

import ast
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.goldens.golden import capture, describe, draw, restore

TESTS = Path(__file__).parents[1]
LIVE = TESTS / 'oracles', TESTS / 'goldens' / 'writers'
LIBRARIES = {
    'accelerate',
    'datasets',
    'faiss',
    'mteb',
    'peft',
    'sentence_transformers',
    'sklearn',
    'torch',
    'transformers',
}


def imported(path: Path) -> set[str]:
    """The packages that a file imports, also within its functions, and `importorskip` where it
    skips what it cannot import.
    """
    names = []
    for node in ast.walk(ast.parse(path.read_text('utf-8'))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or '')
        elif isinstance(node, ast.Attribute) and node.attr == 'importorskip':
            names.append(node.attr)
    return {name.split('.')[0] for name in names}


def test_tests_import_no_library_that_is_an_oracle():
    """A test that is skipped where a library is missing cannot fail."""
    plain, live = set(), set()
    for path in TESTS.rglob('*.py'):
        found = live if any(map(path.is_relative_to, LIVE)) else plain
        found |= imported(path)
    assert 'cpt_jax' in plain and not plain & (LIBRARIES | {'importorskip'})
    assert {'torch', 'transformers', 'sentence_transformers', 'peft', 'sklearn', 'mteb'} <= live


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_weights_are_drawn_from_their_names(tmp_path, dtype):
    kind = ml_dtypes.bfloat16 if dtype == 'bfloat16' else np.dtype(dtype)
    folder = tmp_path / 'a'
    folder.mkdir()
    made = {'scale': np.ones(300, kind), 'weight': np.zeros((20, 30), kind)}
    save_file(made, folder / 'model.safetensors')
    (folder / 'config.json').write_text('{"b": 1, "a": [2]}')
    captured = capture(folder)
    assert captured['tensors']['model.safetensors'] == {
        'scale': f'ones {dtype} 300',
        'weight': f'{dtype} 20 30',
    }
    again = restore(captured, tmp_path / 'b' / 'c')
    assert list(captured['files']['config.json']) == ['b', 'a']
    assert capture(again)['files'] == captured['files']
    found = load_file(again / 'model.safetensors')
    assert {name: array.dtype for name, array in found.items()} == dict.fromkeys(made, kind)
    assert 0.9 < found['scale'].astype(float).mean() < 1.1
    assert 0.15 < found['weight'].astype(float).std() < 0.25
    np.testing.assert_array_equal(found['weight'], draw('weight', f'{dtype} 20 30'))
    assert not np.array_equal(draw('weight', 'float32 9'), draw('other', 'float32 9'))


def test_a_number_is_described_without_a_shape():
    assert describe(np.zeros((), np.float32)) == 'float32'
    assert draw('temperature', 'float32').shape == ()
