"""llama2.c's first file format (`legacy_export` in its export.py): a small LLaMA in a single file
without a config.json.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cpt_jax.model.families.family import Config
from cpt_jax.model.families.llama import LLAMA
from cpt_jax.model.formats.safetensors_files import TensorFiles

_SIZES = ('width', 'hidden', 'layers', 'heads', 'kv_heads', 'vocabulary', 'length')
_HEADER = np.dtype([(name, '<i4') for name in _SIZES])


class _TensorLocation(NamedTuple):
    """Location of a tensor in the file: offset of its first byte, and shape."""

    offset: int
    shape: tuple[int, ...]


def find_llama2c_file(directory: Path) -> Path | None:
    """Returns the first *.bin file of a directory that has the size that its header implies, or
    None.
    """
    for path in sorted(directory.glob('*.bin')):
        if path.is_file() and _has_declared_size(path):
            return path
    return None


class Llama2cFile(TensorFiles):
    """The tensors of a llama2.c file, under Hugging Face's names for LLaMA.

    Unlike in Hugging Face's LLaMA, rotary positions rotate neighbouring dimensions.

    Attributes:
      config: equivalent of config.json.
      names: names of all tensors.
    """

    def __init__(self, path: Path):
        """Opens a file that `find_llama2c_file` returned."""
        header = _read_header(path)
        self.config: dict[str, Any] = {
            'model_type': 'llama',
            'hidden_size': header['width'],
            'intermediate_size': header['hidden'],
            'num_hidden_layers': header['layers'],
            'num_attention_heads': header['heads'],
            'num_key_value_heads': header['kv_heads'],
            'vocab_size': abs(header['vocabulary']),
            'max_position_embeddings': header['length'],
            'rms_norm_eps': 1e-5,
            'tie_word_embeddings': header['vocabulary'] > 0,
        }
        self._path = path
        self._locations = _locate_tensors(header)
        self.names = self._locations.keys()

    @property
    def paths(self) -> list[Path]:
        """The file, as a list."""
        return [self._path]

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor, float32."""
        offset, shape = self._locations[name]
        return np.fromfile(self._path, '<f4', math.prod(shape), offset=offset).reshape(shape)

    def read_shape(self, name: str) -> list[int]:
        """Returns the shape of a tensor, without reading it."""
        return list(self._locations[name].shape)

    def describe_location(self, name: str) -> str:
        """Returns 'file: name', for messages."""
        return f'{self._path}: {name}'


def _has_declared_size(path: Path) -> bool:
    size = path.stat().st_size
    if size <= _HEADER.itemsize:
        return False
    header = _read_header(path)
    if any(value <= 0 for name, value in header.items() if name != 'vocabulary'):
        return False
    # Counted before tensors are listed: other files, such as pytorch_model.bin, declare millions.
    elements = sum(number * math.prod(shape) for _, shape, number in _list_tensors(header))
    return _HEADER.itemsize + 4 * elements == size


def _read_header(path: Path) -> dict[str, int]:
    """Reads the header: seven int32.

    The vocabulary size is negative if the output head is a separate matrix.
    """
    return dict(zip(_SIZES, np.fromfile(path, _HEADER, 1)[0].item(), strict=True))


def _list_tensors(header: dict[str, int]) -> list[tuple[str, tuple[int, ...], int]]:
    """Returns (name, shape, number) of the tensors in the order of the file.

    The number is that of the layers if the name contains `{i}`. The file has each tensor for all
    layers before the next tensor.
    """
    d = header['width']
    f = header['hidden']
    k = header['width'] // header['heads']
    v = abs(header['vocabulary'])
    has_head = header['vocabulary'] < 0
    shapes = [
        ('embed_tokens', (v, d)),
        ('layers.{i}.input_layernorm', (d,)),
        ('layers.{i}.self_attn.q_proj', (d, d)),
        ('layers.{i}.self_attn.k_proj', (header['kv_heads'] * k, d)),
        ('layers.{i}.self_attn.v_proj', (header['kv_heads'] * k, d)),
        ('layers.{i}.self_attn.o_proj', (d, d)),
        ('layers.{i}.post_attention_layernorm', (d,)),
        ('layers.{i}.mlp.gate_proj', (f, d)),
        ('layers.{i}.mlp.down_proj', (d, f)),
        ('layers.{i}.mlp.up_proj', (f, d)),
        ('norm', (d,)),
        # Tables of the rotary positions, which we compute instead.
        ('cosines and sines', (2, header['length'], k // 2)),
        *([('lm_head', (v, d))] if has_head else []),
    ]
    return [
        (f'{name}.weight', shape, header['layers'] if '{i}' in name else 1)
        for name, shape in shapes
    ]


def _locate_tensors(header: dict[str, int]) -> dict[str, _TensorLocation]:
    """Returns the location of each tensor in the file."""
    locations = {}
    offset = _HEADER.itemsize
    for name, shape, number in _list_tensors(header):
        for i in range(number):
            locations[name.format(i=i)] = _TensorLocation(offset, shape)
            offset += 4 * math.prod(shape)
    del locations['cosines and sines.weight']
    return locations


def _read_config(config: Config) -> dict[str, Any]:
    return LLAMA.shape(config) | {'rotary_pairs': 'neighbours'}


LLAMA2C = dataclasses.replace(LLAMA, model_types={'llama2.c': 'LlamaModel'}, shape=_read_config)
