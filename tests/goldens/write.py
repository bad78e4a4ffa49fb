"""Computes the goldens of this folder with the installed libraries, and writes or compares them.

Example: .venv-oracles/bin/python tests/goldens/write.py --check

Without --check, the files are replaced. With --check, as in `make oracles`, each golden is computed
and compared with its files. The program prints a line for each difference and exits with status 1
if there is any. Facts and integers must be equal. Floating-point results x of an array may differ
by 1e-6 max(1, largest |x|) + 1e-5 |x|; the strictest test allows 1e-5. The largest counts because
rounding of a sum depends on its terms: another CPU gave states of up to 3.5 that differ by 2.5e-6
where they are near 0. Arguments without -- select goldens by name.
"""

import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

# Sets the environment of the tests; see tests/conftest.py.
sys.path.insert(0, str(Path(__file__).parents[2]))
import tests.conftest  # noqa: E402, F401

os.environ['HF_HUB_OFFLINE'] = '1'
# The models are tiny, so more threads of torch only add overhead.
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ['TOKENIZERS_PARALLELISM'] = 'false'

import numpy as np

from tests.goldens.golden import FOLDER, Golden, read_golden

ABSOLUTE = 1e-6
RELATIVE = 1e-5
NAMES = tuple(sorted(path.stem for path in (FOLDER / 'writers').glob('[!_]*.py')))


def compute(name: str) -> Golden:
    """Returns a golden, computed with the installed libraries."""
    make: Callable[[], Golden] = importlib.import_module(f'tests.goldens.writers.{name}').make
    golden = make()
    # Converted by JSON as the stored facts are: tuples become lists.
    return Golden(json.loads(json.dumps(golden.facts)), golden.arrays)


def write(name: str, golden: Golden) -> None:
    """Replaces the files of a golden."""
    text = json.dumps(golden.facts, indent=1, ensure_ascii=False)
    (FOLDER / f'{name}.json').write_text(text + '\n', 'utf-8')
    if golden.arrays:
        np.savez_compressed(FOLDER / f'{name}.npz', **golden.arrays)


def find_differences(found: Golden, stored: Golden) -> list[str]:
    """Returns a line for each difference between a golden and the stored one."""
    facts = _compare_facts(found.facts, stored.facts, '')
    return [*facts, *_compare_arrays(found.arrays, stored.arrays)]


def _compare_facts(found: object, stored: object, path: str) -> list[str]:
    if isinstance(found, dict) and isinstance(stored, dict):
        missing = '(missing)'
        lines: list[str] = []
        for key in found | stored:
            values = found.get(key, missing), stored.get(key, missing)
            lines += _compare_facts(*values, f'{path}/{key}')
        return lines
    return [] if found == stored else [f'{path}: {found!r:.200}, stored is {stored!r:.200}']


def _compare_arrays(found: Mapping[str, np.ndarray], stored: Mapping[str, np.ndarray]) -> list[str]:
    lines = [f'{name}: is not in both' for name in sorted(found.keys() ^ stored.keys())]
    for name in sorted(found.keys() & stored.keys()):
        a = np.asarray(found[name])
        b = stored[name]
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            lines.append(f'{name}: {a.dtype}{a.shape}, stored is {b.dtype}{b.shape}')
        elif a.dtype.kind != 'f' and not np.array_equal(a, b):
            lines.append(f'{name}: {np.sum(a != b)} of {a.size} elements differ')
        elif a.dtype.kind == 'f' and not _are_close(a, b):
            lines.append(f'{name}: differs by up to {np.abs(a - b).max():.1e}')
    return lines


def _are_close(a: np.ndarray, b: np.ndarray) -> bool:
    scale = max(1.0, float(np.abs(b).max(initial=0)))
    return np.allclose(a, b, RELATIVE, ABSOLUTE * scale)


def main(arguments: list[str]) -> int:
    """Writes or compares goldens; returns the exit status: 1 if --check finds a difference."""
    check = '--check' in arguments
    names = [name for name in arguments if name != '--check'] or NAMES
    failed = False
    for name in names:
        golden = compute(name)
        if not check:
            write(name, golden)
            print(f'{name}: written')
            continue
        lines = find_differences(golden, read_golden(name))
        failed |= bool(lines)
        summary = f'{name}: DIFFERS' if lines else f'{name}: equal'
        print('\n'.join([summary, *lines]), flush=True)
    return int(failed)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
