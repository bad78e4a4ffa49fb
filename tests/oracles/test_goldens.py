"""Tests that the committed goldens equal the results of the installed libraries."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.goldens.golden import FOLDER, Golden
from tests.goldens.write import NAMES, find_differences

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize('name', NAMES)
def test_golden_equals_the_results_of_the_libraries(name):
    """Runs the program, with the command line for whoever changes a writer."""
    command = [sys.executable, str(FOLDER / 'write.py'), '--check', name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f'{name}: equal' in done.stdout


def test_every_golden_has_a_writer():
    assert {path.stem for path in FOLDER.glob('*.json')} == set(NAMES)
    assert {path.stem for path in FOLDER.glob('*.npz')} <= set(NAMES)
    assert sum(path.stat().st_size for path in FOLDER.glob('*.*')) < 5e6


def test_every_difference_is_found():
    kept = Golden(
        {'ids': [1, 2], 'config': {'a': 1}}, {'x': np.ones(3, np.float32), 'n': np.arange(3)}
    )
    assert find_differences(kept, kept) == []
    expected_lines = {
        'facts': ['/ids', '/config/a', '/more'],
        'arrays': ['x: differs', 'n: 1 of 3', 'x: float64', 'y: is not in both'],
    }
    changed = {
        'facts': [
            kept.facts | {'ids': [1, 3]},
            kept.facts | {'config': {}},
            kept.facts | {'more': None},
        ],
        'arrays': [
            kept.arrays | {'x': np.float32([1, 1, 1.0001])},
            kept.arrays | {'n': np.array([0, 1, 3])},
            kept.arrays | {'x': np.ones(3)},
            kept.arrays | {'y': np.ones(1)},
        ],
    }
    for part, lines in expected_lines.items():
        for line, value in zip(lines, changed[part], strict=True):
            (found_line,) = find_differences(dataclasses.replace(kept, **{part: value}), kept)
            assert found_line.startswith(line), found_line
