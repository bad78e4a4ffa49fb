"""llama2.c's first file format (`legacy_export` of its export.py): a small LLaMA in one file,
without a config.json.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cpt_jax.model.families.family import Config
from cpt_jax.model.families.llama import LLAMA
from cpt_jax.model.formats.safetensors_files import Files

_SIZES = ('width', 'hidden', 'layers', 'heads', 'kv_heads', 'vocabulary', 'length')
_HEADER = np.dtype([(name, '<i4') for name in _SIZES])


class _Place(NamedTuple):
    """Where a tensor stands in the file: its first byte and its shape."""

    offset: int
    shape: tuple[int, ...]


def llama2c_file(directory: Path) -> Path | None:
    """The first *.bin of a directory that is as long as its header says; None where there is
    none.
    """
    return next(
        (path for path in sorted(directory.glob('*.bin')) if path.is_file() and _is_whole(path)),
        None,
    )


class Llama2cFile(Files):
    """The tensors of such a file, under the names that LLaMA has them by; its rotary positions turn
    neighbouring units.

    Attributes:
      config: what config.json would say.
      names: of all tensors.
    """

    def __init__(self, path: Path):
        """Opens a file that `llama2c_file` found."""
        header = _header(path)
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
        self._path, self._places = path, _places(header)[0]
        self.names = self._places.keys()

    @property
    def paths(self) -> list[Path]:
        """The file alone."""
        return [self._path]

    def read(self, name: str) -> np.ndarray:
        """One tensor, float32."""
        place = self._places[name]
        return np.fromfile(self._path, '<f4', math.prod(place.shape), offset=place.offset).reshape(
            place.shape
        )

    def place(self, name: str) -> str:
        """'file: name', for people."""
        return f'{self._path}: {name}'


def _is_whole(path: Path) -> bool:
    size = path.stat().st_size
    header = _header(path) if size > _HEADER.itemsize else {'width': 0}
    return (
        all(value > 0 for name, value in header.items() if name != 'vocabulary')
        and _places(header)[1] == size
    )


def _header(path: Path) -> dict[str, int]:
    """Seven int32; the number of ids is negative where the output head is a matrix of its own."""
    return dict(zip(_SIZES, np.fromfile(path, _HEADER, 1)[0].item(), strict=True))


def _places(header: dict[str, int]) -> tuple[dict[str, _Place], int]:
    """All tensors in the order of the file, each for all layers before the next, and the length of
    the file in bytes.
    """
    d = header['width']
    f = header['hidden']
    k = header['width'] // header['heads']
    v = abs(header['vocabulary'])
    own_head = header['vocabulary'] < 0
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
        # Of the rotary positions; we compute our own.
        ('cosines and sines', (2, header['length'], k // 2)),
        *([('lm_head', (v, d))] if own_head else []),
    ]
    places, offset = {}, _HEADER.itemsize
    for name, shape in shapes:
        for i in range(header['layers'] if '{i}' in name else 1):
            places[f'{name}.weight'.format(i=i)] = _Place(offset, shape)
            offset += 4 * math.prod(shape)
    del places['cosines and sines.weight']
    return places, offset


def _shape(config: Config) -> dict[str, Any]:
    return LLAMA.shape(config) | {'rotary_pairs': 'neighbours'}


LLAMA2C = dataclasses.replace(LLAMA, model_types={'llama2.c': 'LlamaModel'}, shape=_shape)
