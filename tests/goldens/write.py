"""Writes the golden files of this folder from the live libraries, or compares with them.

Example: .venv-oracles/bin/python tests/goldens/write.py --check

`make oracles` runs it with --check: each golden is computed again, and the program fails with a
line for each one that differs. Facts must be equal, integers too; floating-point results may
differ by 1e-6 + 1e-5 |x|, a tenth of what the strictest test allows. Without --check the files
are replaced. Names as arguments choose some of the goldens.
"""

import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

# The environment of the tests: see tests/conftest.py.
sys.path.insert(0, str(Path(__file__).parents[2]))
import tests.conftest  # noqa: E402, F401

os.environ['HF_HUB_OFFLINE'] = '1'
# The models are tiny: more threads of torch only wait for each other.
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ['TOKENIZERS_PARALLELISM'] = 'false'

import numpy as np

from tests.goldens.golden import FOLDER, Golden, read_golden

ABSOLUTE = 1e-6
RELATIVE = 1e-5
NAMES = tuple(sorted(path.stem for path in (FOLDER / 'writers').glob('[!_]*.py')))


def compute(name: str) -> Golden:
    """Returns a golden as the live libraries compute it now."""
    make: Callable[[], Golden] = importlib.import_module(f'tests.goldens.writers.{name}').make
    golden = make()
    # Through JSON, where a tuple is a list.
    return Golden(json.loads(json.dumps(golden.facts)), golden.arrays)


def write(name: str, golden: Golden) -> None:
    """Replaces the files of a golden."""
    text = json.dumps(golden.facts, indent=1, ensure_ascii=False)
    (FOLDER / f'{name}.json').write_text(text + '\n', 'utf-8')
    if golden.arrays:
        np.savez_compressed(FOLDER / f'{name}.npz', **golden.arrays)


def differences(found: Golden, kept: Golden) -> list[str]:
    """Returns a line for each part of a golden that is not as it is kept."""
    return [*_facts(found.facts, kept.facts, ''), *_arrays(found.arrays, kept.arrays)]


def _facts(found: object, kept: object, where: str) -> list[str]:
    if isinstance(found, dict) and isinstance(kept, dict):
        missing = '(nothing)'
        lines: list[str] = []
        for key in found | kept:
            path = f'{where}/{key}'
            lines += _facts(found.get(key, missing), kept.get(key, missing), path)
        return lines
    return [] if found == kept else [f'{where}: {found!r:.200} is kept as {kept!r:.200}']


def _arrays(found: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray]) -> list[str]:
    lines = [f'{name}: is not in both' for name in sorted(found.keys() ^ kept.keys())]
    for name in sorted(found.keys() & kept.keys()):
        one, other = np.asarray(found[name]), kept[name]
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            lines.append(f'{name}: {one.dtype}{one.shape} is kept as {other.dtype}{other.shape}')
        elif one.dtype.kind != 'f' and not np.array_equal(one, other):
            lines.append(f'{name}: {np.sum(one != other)} of {one.size} elements differ')
        elif one.dtype.kind == 'f' and not np.allclose(one, other, RELATIVE, ABSOLUTE):
            lines.append(f'{name}: differs by up to {np.abs(one - other).max():.1e}')
    return lines


def main(arguments: list[str]) -> int:
    """Returns the exit status: 1 where --check finds a difference."""
    check = '--check' in arguments
    names = [name for name in arguments if name != '--check'] or NAMES
    failed = False
    for name in names:
        golden = compute(name)
        if not check:
            write(name, golden)
            print(f'{name}: written')
            continue
        lines = differences(golden, read_golden(name))
        failed |= bool(lines)
        print('\n'.join([f'{name}: {"DIFFERS" if lines else "equal"}', *lines]), flush=True)
    return int(failed)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
