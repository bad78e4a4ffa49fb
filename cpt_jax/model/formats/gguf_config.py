"""The config.json that a GGUF file was converted from, as far as its metadata describe it.

GGUF's keys and their defaults are those of llama.cpp (gguf-py/gguf/constants.py, llama-model.cpp).
transformers 5.23 reads fewer of them: it ignores the scaling of rotary positions and LLaMA's
biases, and takes Qwen3's head dimension and the scale of Gemma 3's attention from its own defaults.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cpt_jax.model.families.config_keys import CONFIG_KEYS, ROPE_KEYS
from cpt_jax.model.formats.gguf_header import GgufHeader
from cpt_jax.model.rotary import compute_rotary_frequencies
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_checks import (
    FLAG,
    allow_integers,
    allow_numbers,
    check_values,
    format_value,
)

# general.architecture -> model_type in config.json.
_MODEL_TYPES = {'llama': 'llama', 'qwen2': 'qwen2', 'qwen3': 'qwen3', 'gemma3': 'gemma3_text'}
# Keys of config.json -> GGUF's keys without the name of the architecture before them.
_KEYS = {
    'num_hidden_layers': 'block_count',
    'max_position_embeddings': 'context_length',
    'hidden_size': 'embedding_length',
    'intermediate_size': 'feed_forward_length',
    'num_attention_heads': 'attention.head_count',
    'rms_norm_eps': 'attention.layer_norm_rms_epsilon',
    'num_key_value_heads': 'attention.head_count_kv',
    'head_dim': 'attention.key_length',
    'sliding_window': 'attention.sliding_window',
    'rope_theta': 'rope.freq_base',
    'rope_local_base_freq': 'rope.freq_base_swa',
}
_REQUIRED_KEYS = list(_KEYS)[:6]
_CAUSAL, _POOLING = 'attention.causal', 'pooling_type'
# llama.cpp's numbers of poolings -> our names. 0 is no pooling.
_POOLINGS = {1: 'mean', 2: 'first', 3: 'eos'}
_TOKEN_KEYS = {
    'bos_token_id': 'tokenizer.ggml.bos_token_id',
    'eos_token_id': 'tokenizer.ggml.eos_token_id',
    'pad_token_id': 'tokenizer.ggml.padding_token_id',
}
_SCALING_KEYS = {
    'factor': 'rope.scaling.factor',
    'original_max_position_embeddings': 'rope.scaling.original_context_length',
    'beta_fast': 'rope.scaling.yarn_beta_fast',
    'beta_slow': 'rope.scaling.yarn_beta_slow',
}
# Keys that must have this value if they exist, and what another value means.
_EXPECTED = {
    'expert_count': (0, 'a mixture of experts, which is not supported'),
    'rope.scaling.attn_factor': (1, 'a scale of attention, which is not supported'),
    'attn_logit_softcapping': (0, 'a limit of attention logits, which is not supported'),
}
# LLaMA 3's scaling of rotary frequencies. Its models differ only in the factor.
_LLAMA3 = {
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8192,
}
FREQUENCY_FACTORS = 'rope_freqs.weight'
# Gemma 3 of 27B scales its attention by the width per head, not by the width of its heads.
# llama.cpp knows it by its number of layers.
_GEMMA3_27B_LAYERS = 62


def make_config(header: GgufHeader, factors: np.ndarray | None) -> dict[str, Any]:
    """Returns the content of a config.json.

    Args:
      header: header of the file.
      factors: what each rotary frequency is divided by (rope_freqs.weight), if the file has it.

    Raises:
      UserError: the architecture is not supported, or a key is missing or has a value that is not
        supported.
    """
    path = header.path
    architecture = _find_architecture(header)
    prefixed = {key: f'{architecture}.{name}' for key, name in _KEYS.items()}
    names = prefixed | _TOKEN_KEYS
    check_values(path, header.metadata, {name: CONFIG_KEYS[key] for key, name in names.items()})
    given = _select(header.metadata, names)
    missing = [prefixed[key] for key in _REQUIRED_KEYS if key not in given]
    if missing:
        raise UserError(f'{path}: has no {", ".join(missing)}: convert the model again')
    for name, (value, meaning) in _EXPECTED.items():
        found = header.metadata.get(f'{architecture}.{name}', value)
        if found != value:
            raise UserError(f'{path}: {architecture}.{name}={format_value(found)}: {meaning}')
    table = header.tensors.get('token_embd.weight')
    if table is None:
        raise UserError(f'{path}: has no token_embd.weight: convert the model again')
    heads = given['num_attention_heads']
    width = given.get('head_dim') or given['hidden_size'] // heads
    rotated = f'{architecture}.rope.dimension_count'
    if header.metadata.get(rotated, width) != width:
        raise UserError(
            f'{path}: {rotated}={format_value(header.metadata[rotated])}: only heads that are '
            f'rotated as a whole are supported (here {width})'
        )
    config = given | {
        'model_type': _MODEL_TYPES[architecture],
        'vocab_size': table.shape[0],
        'head_dim': width,
        'num_key_value_heads': given.get('num_key_value_heads') or heads,
        'tie_word_embeddings': 'output.weight' not in header.tensors,
        'attention_bias': architecture == 'llama' and 'blk.0.attn_q.bias' in header.tensors,
    }
    causal = f'{architecture}.{_CAUSAL}'
    check_values(path, header.metadata, {causal: FLAG})
    if header.metadata.get(causal) is False:
        config |= {'is_causal': False}
    rope = {'rope_theta': given.get('rope_theta', 10_000.0)}
    rope |= _read_scaling(header, architecture, rope['rope_theta'], width, factors)
    if architecture == 'gemma3':
        return config | _describe_gemma3(header, config, rope)
    return config | {'rope_parameters': rope}


def read_pooling(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the pooling of a file as an argument of EncoderConfig; {} if it has none.

    Raises:
      UserError: the pooling is not supported.
    """
    name = f'{metadata.get("general.architecture")}.{_POOLING}'
    number = metadata.get(name, 0)
    if not isinstance(number, int) or number not in (0, *_POOLINGS):
        raise UserError(
            f'{path}: {name}={format_value(number)} is not supported; supported are 0 (none), '
            f'1 (mean), 2 (cls) and 3 (last)'
        )
    return {'pooling': _POOLINGS[number]} if number else {}


def _find_architecture(header: GgufHeader) -> str:
    architecture = header.metadata.get('general.architecture')
    if architecture not in [*_MODEL_TYPES]:
        raise UserError(
            f'{header.path}: general.architecture={format_value(architecture)} is not supported; '
            f'supported are {", ".join(_MODEL_TYPES)}'
        )
    parts = header.metadata.get('split.count', 0)
    if parts not in (0, 1):
        raise UserError(
            f'{header.path}: one of {format_value(parts)} files of a model: join them with '
            f'`llama-gguf-split --merge`'
        )
    return architecture


def _select(metadata: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Returns the values that exist, by our keys."""
    return {key: _shorten(metadata[name]) for key, name in names.items() if name in metadata}


def _shorten(value: Any) -> Any:
    """Returns the shortest number that has this float32 value: 1e-06 for 9.99999997e-07."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _read_scaling(
    header: GgufHeader, architecture: str, base: float, width: int, factors: np.ndarray | None
) -> dict[str, Any]:
    """Returns the scaling of rotary positions, as the values of `rope_parameters`.

    Raises:
      UserError: the scaling is not supported.
    """
    if factors is not None:
        return _recognize_llama3(header, base, width, factors)
    names = {key: f'{architecture}.{name}' for key, name in _SCALING_KEYS.items()}
    check_values(header.path, header.metadata, {names[key]: ROPE_KEYS[key] for key in names})
    scaling = _select(header.metadata, names)
    # Files of 2023 have another key. Without a type, llama.cpp scales linearly.
    factor = scaling.get('factor') or header.metadata.get(f'{architecture}.rope.scale_linear')
    name = f'{architecture}.rope.scaling.type'
    kind = header.metadata.get(name, 'linear')
    if kind == 'none' or (kind == 'linear' and factor in (None, 0, 1)):
        return {'rope_type': 'default'}
    if kind == 'linear':
        check_values(header.path, {'rope scaling': factor}, {'rope scaling': allow_numbers(1)})
        return {'rope_type': 'linear', 'factor': factor}
    if kind == 'yarn' and factor:
        return {'rope_type': 'yarn'} | scaling
    raise UserError(
        f'{header.path}: {name}={format_value(kind)} with factor {format_value(factor)} is not '
        f'supported; supported are none, linear and yarn'
    )


def _recognize_llama3(
    header: GgufHeader, base: float, width: int, factors: np.ndarray
) -> dict[str, Any]:
    """Returns the scaling whose factors a file has.

    Raises:
      UserError: they are not the factors of a LLaMA 3.
    """
    factor = round(float(factors.max()), 3)
    plain = compute_rotary_frequencies(width, base, ())
    scaled = compute_rotary_frequencies(width, base, ('llama3', factor, *_LLAMA3.values()))
    if factors.shape != plain.shape or not np.allclose(factors, plain / scaled, rtol=1e-3):
        raise UserError(
            f'{header.path}: {FREQUENCY_FACTORS} has other factors than a LLaMA 3, which is not '
            f'supported'
        )
    return {'rope_type': 'llama3', 'factor': factor} | _LLAMA3


def _describe_gemma3(
    header: GgufHeader, config: Mapping[str, Any], rope: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the keys that only Gemma 3 has.

    Args:
      header: header of the file.
      config: the other keys.
      rope: rotary positions of full layers.
    """
    layers = config['num_hidden_layers']
    name = 'gemma3.attention.sliding_window_pattern'
    pattern = header.metadata.get(name, 6)
    if isinstance(pattern, np.ndarray):
        is_local = [bool(value) for value in pattern[:layers]]
    else:
        check_values(header.path, {name: pattern}, {name: allow_integers(1, 10_000)})
        is_local = [(layer + 1) % pattern > 0 for layer in range(layers)]
    if not config.get('sliding_window'):
        is_local = [False] * layers
    per_head = config['hidden_size'] // config['num_attention_heads']
    local_base = config.get('rope_local_base_freq', 10_000.0)
    return {
        'hidden_activation': 'gelu_pytorch_tanh',
        'sliding_window': config.get('sliding_window') or None,
        'layer_types': ['sliding_attention' if local else 'full_attention' for local in is_local],
        'query_pre_attn_scalar': (per_head if layers == _GEMMA3_27B_LAYERS else config['head_dim']),
        'rope_local_base_freq': local_base,
        # transformers 4 reads the scaling of full layers here.
        'rope_scaling': None if rope['rope_type'] == 'default' else _without_base(rope),
        'rope_theta': rope['rope_theta'],
        'rope_parameters': {
            'full_attention': dict(rope),
            'sliding_attention': {'rope_type': 'default', 'rope_theta': local_base},
        },
    }


def _without_base(rope: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in rope.items() if key != 'rope_theta'}
