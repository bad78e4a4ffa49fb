"""GGUF files of models in Hugging Face's format, written as llama.cpp's converter does."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from cpt_jax.model.formats.safetensors_files import TensorFiles

ARCHITECTURES = {'gemma3_text': 'gemma3'}  # by model_type, where they differ
_SCALING_TYPES = {'linear': gguf.RopeScalingType.LINEAR, 'yarn': gguf.RopeScalingType.YARN}
# Keys of GGUFWriter's methods (add_<name>) by keys of config.json.
_METHODS = {
    'num_hidden_layers': 'block_count',
    'max_position_embeddings': 'context_length',
    'hidden_size': 'embedding_length',
    'intermediate_size': 'feed_forward_length',
    'num_attention_heads': 'head_count',
    'num_key_value_heads': 'head_count_kv',
    'rms_norm_eps': 'layer_norm_rms_eps',
    'head_dim': 'key_length',
    'sliding_window': 'sliding_window',
}


def convert_to_gguf(
    directory: Path,
    path: Path,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    metadata: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
) -> Path:
    """Converts the config.json and the weights of a directory; returns `path`.

    Args:
      directory: a LLaMA, Qwen2, Qwen3 or Gemma 3.
      path: file to write.
      kind: type of the matrices.
      metadata: metadata to add, by full key.
      tokenizer: metadata of the tokenizer, by key without 'tokenizer.ggml.'.
    """
    config = json.loads((directory / 'config.json').read_text())
    # Defaults of transformers.
    config.setdefault('rms_norm_eps', 1e-6)
    config.setdefault('rope_parameters', {'rope_type': 'default', 'rope_theta': 10_000.0})
    files = TensorFiles(directory)
    tensors = {name.removeprefix('model.'): files.read(name) for name in files.names}
    return write_gguf(path, config, tensors, kind, metadata, tokenizer)


def write_gguf(
    path: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    metadata: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a model; returns `path`.

    Args:
      path, config, kind, metadata, tokenizer: see `convert_to_gguf`.
      tensors: tensors under Hugging Face's names without a prefix, or under GGUF's names if they
        have no other. Those of dtype uint8 are the bytes of a matrix of type `kind`.
    """
    architecture = ARCHITECTURES.get(config['model_type'], config['model_type'])
    writer = gguf.GGUFWriter(path, architecture)
    _describe_config(writer, config)
    for key, value in (metadata or {}).items():
        _add_value(writer, key, value)
    for key, value in (tokenizer or {}).items():
        _add_value(writer, f'tokenizer.ggml.{key}', value)
    (number,) = (key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config['num_hidden_layers'])
    for name, array in tensors.items():
        stem, _, suffix = name.rpartition('.')
        stem = names.get_name(stem) or names.get_name(f'model.{stem}') or stem
        if array.dtype != np.uint8:
            array = _convert_tensor(config, name, np.asarray(array, np.float32))
            array = gguf.quantize(array, kind) if array.ndim > 1 else array
        raw_dtype = kind if array.dtype == np.uint8 else None
        writer.add_tensor(f'{stem}.{suffix}', array, raw_dtype=raw_dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Adds a key with the type that llama.cpp's converter gives it."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def describe_byte_level(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a tokenizer.json with a byte-level BPE as metadata for `convert_to_gguf`."""
    vocabulary = content['model']['vocab']
    special = {token['content'] for token in content['added_tokens']}
    tokens = sorted(vocabulary, key=vocabulary.get)
    return {
        'model': 'gpt2',
        'pre': 'gpt-2',
        'tokens': tokens,
        'token_type': [3 if token in special else 1 for token in tokens],
        'merges': [
            merge if isinstance(merge, str) else ' '.join(merge)
            for merge in content['model']['merges']
        ],
    }


def _describe_config(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    for key, name in _METHODS.items():
        if config.get(key) is not None:
            getattr(writer, f'add_{name}')(config[key])
    rope = config['rope_parameters']
    rope = rope.get('full_attention', rope)
    writer.add_rope_freq_base(rope['rope_theta'])
    if rope['rope_type'] in _SCALING_TYPES:
        writer.add_rope_scaling_type(_SCALING_TYPES[rope['rope_type']])
        writer.add_rope_scaling_factor(rope['factor'])
    if rope['rope_type'] == 'yarn':
        writer.add_rope_scaling_orig_ctx_len(rope['original_max_position_embeddings'])
    if config['model_type'] == 'gemma3_text':
        is_local = [kind == 'sliding_attention' for kind in config['layer_types']]
        writer.add_array('gemma3.attention.sliding_window_pattern', is_local)


def _convert_tensor(config: Mapping[str, Any], name: str, array: np.ndarray) -> np.ndarray:
    """Returns a tensor as llama.cpp stores it."""
    if config['model_type'] == 'gemma3_text' and name.endswith('norm.weight'):
        return array + 1
    if config['model_type'] == 'llama' and re.search(r'\.[qk]_proj\.', name):
        key = 'num_attention_heads' if '.q_proj.' in name else 'num_key_value_heads'
        heads = config[key]
        # LlamaModel.permute in convert_hf_to_gguf.py.
        halves = array.reshape(heads, 2, len(array) // heads // 2, *array.shape[1:])
        return halves.swapaxes(1, 2).reshape(array.shape)
    return array
