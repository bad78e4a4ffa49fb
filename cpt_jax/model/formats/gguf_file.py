"""The weights of a GGUF file, under Hugging Face's names and in its layouts."""

import re
from collections.abc import Iterable
from pathlib import Path

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType, dequantize

from cpt_jax.model.formats.gguf_config import FREQUENCY_FACTORS, make_config
from cpt_jax.model.formats.gguf_header import GgufTensor, read_gguf_header
from cpt_jax.model.formats.safetensors_files import TensorFiles
from cpt_jax.runtime.errors import UserError

# Names by GGUF's names, both without '.weight' or '.bias'.
_OUTER = {'token_embd': 'embed_tokens', 'output_norm': 'norm', 'output': 'lm_head'}
_LAYER = {
    'attn_norm': 'input_layernorm',
    'attn_q': 'self_attn.q_proj',
    'attn_k': 'self_attn.k_proj',
    'attn_v': 'self_attn.v_proj',
    'attn_output': 'self_attn.o_proj',
    'attn_q_norm': 'self_attn.q_norm',
    'attn_k_norm': 'self_attn.k_norm',
    'ffn_norm': 'post_attention_layernorm',
    'ffn_gate': 'mlp.gate_proj',
    'ffn_up': 'mlp.up_proj',
    'ffn_down': 'mlp.down_proj',
}
# Gemma 3 has norms before and after each part.
_GEMMA3_LAYER = _LAYER | {
    'post_attention_norm': 'post_attention_layernorm',
    'ffn_norm': 'pre_feedforward_layernorm',
    'post_ffw_norm': 'post_feedforward_layernorm',
}
# Types that are read in their own dtype.
_DTYPES = {
    GGMLQuantizationType.F32: np.dtype(np.float32),
    GGMLQuantizationType.F16: np.dtype(np.float16),
    GGMLQuantizationType.BF16: np.dtype(ml_dtypes.bfloat16),
}
# Elements that are dequantized at once. The gguf library's own loop over the rows of a tensor
# keeps all of them until the end, twice the memory of the tensor.
_BLOCK_ELEMENTS = 1 << 20
# XLA:CPU uses an array with this alignment without copying it.
_ALIGNMENT = 64


class GgufFile(TensorFiles):
    """All tensors of a GGUF file by name; each is dequantized when it is read.

    Matrices have the dtype of the file if it is float16 or bfloat16 for all of them. Otherwise, as
    norms and biases, they are float32.

    Attributes:
      names: names of all tensors, as Hugging Face calls them.
      metadata: metadata of the file, by key.
      config: equivalent of config.json.
    """

    def __init__(self, path: Path):
        """Opens a file, without reading a tensor.

        Raises:
          UserError: the file is damaged, or its architecture or a type is not supported.
        """
        header = read_gguf_header(path)
        self._path = path
        self.metadata = header.metadata
        frequencies = header.tensors.get(FREQUENCY_FACTORS)
        self.config = make_config(
            header, _read_tensor(path, frequencies).ravel() if frequencies else None
        )
        is_gemma = self.config['model_type'] == 'gemma3_text'
        layer_names = _GEMMA3_LAYER if is_gemma else _LAYER
        self._gguf_names = {
            _translate_name(name, layer_names): name
            for name in header.tensors
            if name != FREQUENCY_FACTORS
        }
        self._tensors = header.tensors
        self.names = self._gguf_names.keys()
        self._matrix_dtype = _find_matrix_dtype(header.tensors.values())

    @property
    def paths(self) -> list[Path]:
        """The file, as a list."""
        return [self._path]

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor.

        Raises:
          UserError: the rows of a query or key projection are not those of its heads.
        """
        array = _read_tensor(self._path, self._tensors[self._gguf_names[name]])
        array = array.astype(self._matrix_dtype if array.ndim > 1 else np.float32, copy=False)
        kind = self.config['model_type']
        if kind == 'gemma3_text' and name.endswith('norm.weight'):
            # llama.cpp stores the factor, Hugging Face the factor minus 1.
            return array - 1
        heads = {
            'q_proj': self.config['num_attention_heads'],
            'k_proj': self.config['num_key_value_heads'],
        }
        projection = name.split('.')[-2]
        if kind == 'llama' and projection in heads:
            if len(array) % (2 * heads[projection]):
                raise UserError(
                    f'{self.describe_location(name)} has {len(array)} rows, which are not '
                    f'{heads[projection]} heads'
                )
            return _restore_halves(array, heads[projection])
        return array

    def read_shape(self, name: str) -> list[int]:
        """Returns the shape of a tensor, without reading it."""
        return list(self._tensors[self._gguf_names[name]].shape)

    def describe_location(self, name: str) -> str:
        """Returns 'file: name' with GGUF's name, for messages."""
        return f'{self._path}: {self._gguf_names[name]}'


def _translate_name(name: str, layer_names: dict[str, str]) -> str:
    """Returns Hugging Face's name of a tensor; GGUF's name if it has none."""
    match = re.fullmatch(r'(?:blk\.(\d+)\.)?(\w+)(\.weight|\.bias)', name)
    if not match:
        return name
    layer, part, suffix = match.groups()
    if layer is None:
        return _OUTER.get(part, part) + suffix
    return f'layers.{layer}.{layer_names.get(part, part)}{suffix}'


def _find_matrix_dtype(tensors: Iterable[GgufTensor]) -> np.dtype:
    """Returns the dtype of all matrices, float32 if they differ or are quantized."""
    single = np.dtype(np.float32)
    dtypes = {_DTYPES.get(tensor.kind, single) for tensor in tensors if len(tensor.shape) > 1}
    return dtypes.pop() if len(dtypes) == 1 else single


def _read_tensor(path: Path, tensor: GgufTensor) -> np.ndarray:
    """Reads and dequantizes a tensor, a block of rows at a time."""
    dtype = _DTYPES.get(tensor.kind, np.dtype(np.float32))
    array = _make_aligned_array(tensor.shape, dtype)
    rows = array.reshape(-1, tensor.shape[-1])
    step = max(1, _BLOCK_ELEMENTS // tensor.shape[-1])
    with path.open('rb') as file:
        file.seek(tensor.offset)
        for start in range(0, tensor.rows, step):
            block = rows[start : start + step]
            data = np.fromfile(file, np.uint8, len(block) * tensor.row_bytes)
            data = data.reshape(len(block), tensor.row_bytes)
            if tensor.kind in _DTYPES:
                block[:] = data.view(dtype)
            else:
                block[:] = dequantize(data, tensor.kind)
    return array


def _make_aligned_array(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns an array whose memory is not initialized."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _restore_halves(array: np.ndarray, heads: int) -> np.ndarray:
    """Returns a query or key projection with rows in Hugging Face's order.

    Rotary positions rotate pairs of dimensions. llama.cpp stores both of a pair next to each other,
    Hugging Face the first ones of all pairs, then the second ones:

      llama.cpp, a head of 6 rows: 0a 0b 1a 1b 2a 2b -> 0a 1a 2a 0b 1b 2b
    """
    pairs = array.reshape(heads, -1, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)
