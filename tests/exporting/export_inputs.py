"""Exported runs and embedded texts, shared by the tests of exports and the writer of their golden
data.
"""

import json
import zlib
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from cpt_jax.exporting.golden import TEXTS
from tests.conftest import sentences

MIXED = [*TEXTS, *sentences(20, seed=5, words=30)]
TEMPLATE = 'This "{text}" means:"'
TEMPLATED = [text for text in MIXED if len(text) < 40] + sentences(9, words=4)
NAMES = {'x': 'query', 'y': 'document'}
LLAMA = {
    'positions': 'rotary',
    'norm': 'rmsnorm',
    'activation': 'swiglu',
    'bias': False,
    'heads': 4,
    'kv_heads': 2,
    'head_width': 10,
}
CASES = {
    'gpt2': {'causal': True, 'layers': 2},
    'gpt2, every token sees all': {'causal': False, 'activation': 'relu', 'hidden': 72},
    'llama': LLAMA | {'causal': True, 'layers': 3},
    'llama, every token sees all': LLAMA | {'causal': False, 'layers': 1},
    'qwen3': {'pretrained': 'qwen3', 'causal': True},
    'qwen3, every token sees all': {'pretrained': 'qwen3', 'causal': False},
    'gemma3': {'pretrained': 'gemma3', 'causal': True},
    'gemma3, every token sees all': {'pretrained': 'gemma3', 'causal': False},
    'embeddinggemma': {
        'pretrained': 'gemma3',
        'use_bidirectional_attention': True,
        'causal': False,
    },
    'llama 3': {'pretrained': 'llama 3', 'causal': True},
    'opt 350m': {'pretrained': 'opt', 'causal': True},
    'roberta': {'pretrained': 'roberta', 'causal': False},
}
# Models that are exported with a template, and dtypes narrower than float32.
TEMPLATES = 'opt', 'llama 3'
NARROW = 'bfloat16', 'float16'


def choices_of(case: str, pretrained: dict[str, dict]) -> dict[str, Any]:
    """Returns the arguments of `export_run` for a case.

    Args:
      case: key of CASES.
      pretrained: config.json files of transformers, by the names in CASES.
    """
    choices = dict(CASES[case])
    if 'pretrained' in choices:
        choices['pretrained'] = dict(pretrained[choices['pretrained']])
        if choices.pop('use_bidirectional_attention', False):
            choices['pretrained'] |= {'use_bidirectional_attention': True}
    return choices


def layout_of(out: Path) -> dict[str, Any]:
    """Returns the content of an export that other libraries read.

    These are its JSON files, a checksum of the tokenizer, and dtype, shape and checksum of each
    tensor.
    """
    found: dict[str, Any] = {}
    for path in sorted(path for path in out.rglob('*') if path.is_file()):
        name = path.relative_to(out).as_posix()
        if path.suffix == '.safetensors':
            found[name] = {
                tensor: ' '.join(map(str, (array.dtype, *array.shape, zlib.crc32(array.tobytes()))))
                for tensor, array in sorted(load_file(path).items())
            }
        elif path.name == 'tokenizer.json':
            found[name] = zlib.crc32(path.read_bytes())
        elif path.suffix == '.json' and path.name not in ('golden.json', 'parity.json'):
            found[name] = json.loads(path.read_text('utf-8'))
    return found
