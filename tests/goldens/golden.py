"""Results of other libraries, kept in files: what tests compare with where torch is not installed.

A golden is `<name>.json` and, where it has arrays, `<name>.npz`. No weights are stored: a model's
golden holds the names, types and shapes of its tensors, and `draw` fills each from its name. The
program write.py beside this module runs the other libraries and writes the files.
"""

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

FOLDER = Path(__file__).parent
WEIGHTS = '.safetensors'


@dataclass(frozen=True)
class Golden:
    """Expected results.

    Attributes:
      facts: what JSON holds: configs, ids, directories as `capture` returns them.
      arrays: results that are numbers, by name.
    """

    facts: dict[str, Any]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


@cache
def read_golden(name: str) -> Golden:
    """Returns the committed golden of this name."""
    path = FOLDER / f'{name}.json'
    arrays = {}
    if path.with_suffix('.npz').exists():
        with np.load(path.with_suffix('.npz')) as stored:
            arrays = dict(stored)
    return Golden(json.loads(path.read_text('utf-8')), arrays)


def capture(folder: Path) -> dict[str, Any]:
    """Returns a directory without its weights: the content of its JSON files, the text of the
    others, and type and shape of each tensor.
    """
    files: dict[str, Any] = {}
    tensors: dict[str, dict[str, str]] = {}
    for path in sorted(path for path in folder.rglob('*') if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix == WEIGHTS:
            tensors[name] = {
                tensor: describe(array) for tensor, array in sorted(load_file(path).items())
            }
        elif path.suffix == '.json':
            files[name] = json.loads(path.read_text('utf-8'))
        elif path.name != 'README.md':
            files[name] = path.read_text('utf-8')
    return {'files': files, 'tensors': tensors}


def restore(captured: Mapping[str, Any], folder: Path) -> Path:
    """Writes a captured directory, its weights drawn from their names; returns `folder`."""
    for name, content in captured['files'].items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=2) if name.endswith('.json') else content
        path.write_text(text, 'utf-8')
    for name, tensors in captured['tensors'].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        drawn = {tensor: draw(tensor, described) for tensor, described in tensors.items()}
        save_file(drawn, folder / name, metadata={'format': 'pt'})
    return folder


def describe(array: np.ndarray) -> str:
    """Returns a tensor's type and shape, as in 'float32 24 40', after 'ones' where it holds only
    ones: scales of norms, unless they are stored as distances from 1.
    """
    words = [array.dtype.name, *map(str, array.shape)]
    return ' '.join(['ones', *words] if np.all(array == 1) else words)


def draw(name: str, described: str) -> np.ndarray:
    """Returns a tensor that depends only on its name and description: normal values with a
    standard deviation of 0.2, around 1 for ones and around 0 for all else.

    Args:
      name: the tensor's name in the file.
      described: what `describe` says of it.
    """
    *ones, dtype, shape = re.fullmatch(r'(ones )?(\w+)((?: \d+)*)', described).groups()
    kind = ml_dtypes.bfloat16 if dtype == 'bfloat16' else np.dtype(dtype)
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    noise = 0.2 * generator.standard_normal([int(size) for size in shape.split()], np.float32)
    return (noise + (1 if ones == ['ones '] else 0)).astype(kind)
