"""Tests of golden.py, and that only tests/oracles and the writers import other libraries."""

import ast
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.goldens.golden import capture, describe, draw, restore

TESTS = Path(__file__).parents[1]
# Folders that may import other libraries.
ORACLE_FOLDERS = TESTS / 'oracles', TESTS / 'goldens' / 'writers'
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


def collect_packages(path: Path) -> set[str]:
    """Returns the packages that a file imports, also within functions.

    `importorskip` is included if the file uses it.
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


def test_only_oracles_import_other_libraries():
    """`importorskip` is excluded too: a test that is skipped without a library cannot fail."""
    plain = set()
    oracles = set()
    for path in TESTS.rglob('*.py'):
        is_oracle = any(map(path.is_relative_to, ORACLE_FOLDERS))
        packages = oracles if is_oracle else plain
        packages |= collect_packages(path)
    assert 'cpt_jax' in plain
    assert not plain & (LIBRARIES | {'importorskip'})
    assert {'torch', 'transformers', 'sentence_transformers', 'peft', 'sklearn', 'mteb'} <= oracles


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_weights_are_generated_from_their_names(tmp_path, dtype):
    kind = ml_dtypes.bfloat16 if dtype == 'bfloat16' else np.dtype(dtype)
    folder = tmp_path / 'a'
    folder.mkdir()
    tensors = {'scale': np.ones(300, kind), 'weight': np.zeros((20, 30), kind)}
    save_file(tensors, folder / 'model.safetensors')
    (folder / 'config.json').write_text('{"b": 1, "a": [2]}')
    captured = capture(folder)
    assert captured['tensors']['model.safetensors'] == {
        'scale': f'ones {dtype} 300',
        'weight': f'{dtype} 20 30',
    }
    restored = restore(captured, tmp_path / 'b' / 'c')
    assert list(captured['files']['config.json']) == ['b', 'a']
    assert capture(restored)['files'] == captured['files']
    found = load_file(restored / 'model.safetensors')
    assert {name: array.dtype for name, array in found.items()} == dict.fromkeys(tensors, kind)
    assert 0.9 < found['scale'].astype(float).mean() < 1.1
    assert 0.15 < found['weight'].astype(float).std() < 0.25
    np.testing.assert_array_equal(found['weight'], draw('weight', f'{dtype} 20 30'))
    assert not np.array_equal(draw('weight', 'float32 9'), draw('other', 'float32 9'))


def test_scalar_is_described_without_a_shape():
    assert describe(np.zeros((), np.float32)) == 'float32'
    assert draw('temperature', 'float32').shape == ()
