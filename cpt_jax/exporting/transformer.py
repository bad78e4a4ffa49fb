"""An encoder as config.json and safetensors files that transformers reads."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.families.family import Family
from cpt_jax.model.families.known import family_of
from cpt_jax.model.families.load import written
from cpt_jax.model.formats.safetensors_files import INDEX
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_files import write_json

DTYPES = {'float32': np.float32, 'bfloat16': ml_dtypes.bfloat16, 'float16': np.float16}

# The parts that every layer of these two has; what is trained from scratch is exported as the one
# that it equals.
_GPT2 = {'positions': 'learned', 'norm': 'layernorm', 'bias': True}
_LLAMA = {'positions': 'rotary', 'norm': 'rmsnorm', 'bias': False}
# transformers' names of our activations.
_ACTIVATIONS = {'gelu': 'gelu_new', 'gelu_exact': 'gelu', 'relu': 'relu'}
# Those whose attention transformers leaves causal whatever config.json says.
_ALWAYS_CAUSAL = ('gpt_neox', 'gptj', 'codegen')


def config_json(
    encoder_config: EncoderConfig, pretrained: Mapping[str, Any] | None, dtype: str
) -> tuple[Family, dict[str, Any]]:
    """The family that an encoder is written as, and its config.json, under the keys of transformers
    4 and of 5.

    Args:
      pretrained: config.json of the model that training started from; None: from scratch.
      dtype: of the weights.

    Raises:
      UserError: no family computes what the encoder does.
    """
    own = dict(pretrained) if pretrained else _config_from_scratch(encoder_config)
    kind = own['model_type']
    if not encoder_config.causal and kind in _ALWAYS_CAUSAL:
        raise UserError(
            f'--model: transformers has no {kind} in which every token sees its whole text; it '
            f'cannot be exported'
        )
    if encoder_config.rotary_pairs == 'neighbours' and kind == 'llama':
        raise UserError(
            '--model: it started from a model of llama2.c, whose rotary positions turn other '
            'units than those of transformers'
        )
    family = family_of(own)
    config = own | {
        'architectures': [family.model_types[kind]],
        'vocab_size': encoder_config.vocab_size,
        'max_position_embeddings': encoder_config.max_length,
        'dtype': dtype,
        'torch_dtype': dtype,
        'use_cache': False,
        **_sight(encoder_config.causal, own),
        **_older_rope(own),
    }
    again = EncoderConfig(
        vocab_size=encoder_config.vocab_size,
        **family.shape(config) | {'causal': encoder_config.causal},
    )
    differing = [
        key
        for key in vars(again)
        if key not in _HOW and getattr(again, key) != getattr(encoder_config, key)
    ]
    if differing:
        raise AssertionError(f'config.json of {kind} tells of another {differing}')
    return family, config


def _sight(causal: bool, own: Mapping[str, Any]) -> dict[str, bool]:
    """Who sees whom, for transformers and for other readers. To Gemma 3 the second key says too
    that a window counts both sides.
    """
    if own['model_type'] != 'gemma3_text':
        return {'is_causal': causal, 'use_bidirectional_attention': not causal}
    return (
        {}
        if own.get('use_bidirectional_attention')
        else {'is_causal': causal, 'use_bidirectional_attention': False}
    )


def _older_rope(own: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers 4 and others read of rotary positions, of one kind for all layers, in place
    of `rope_parameters`.
    """
    rope = own.get('rope_parameters')
    if not rope or 'rope_theta' not in rope:
        return {}
    scaling = {key: value for key, value in rope.items() if key != 'rope_theta'}
    return {'rope_theta': rope['rope_theta']} | (
        {'rope_scaling': scaling} if scaling.get('rope_type', 'default') != 'default' else {}
    )


# Of a EncoderConfig: how it is trained and computed, which no config.json tells of, and an output
# head, of which an export has none.
_HOW = ('init', 'dropout', 'remat', 'attention', 'dtype', 'layer_loop', 'pooling', 'tied')


def _config_from_scratch(config: EncoderConfig) -> dict[str, Any]:
    if (
        _equals(config, _GPT2)
        and config.activation != 'swiglu'
        and config.kv_heads * config.head_width == config.width
    ):
        return _gpt2(config)
    if _equals(config, _LLAMA) and config.activation == 'swiglu':
        return _llama(config)
    parts = ', '.join(
        f'model.{key}={getattr(config, key)}'
        for key in ('positions', 'norm', 'activation', 'bias', 'kv_heads', 'head_width')
    )
    raise UserError(
        f'--model: no other library has a transformer of these parts: {parts}. GPT-2 has learned '
        'positions, layernorm, biases and as many kv_heads as heads; LLaMA rotary positions, '
        'rmsnorm, swiglu and no biases. Train with either to export'
    )


def _equals(config: EncoderConfig, parts: Mapping[str, Any]) -> bool:
    return all(getattr(config, key) == value for key, value in parts.items())


def _gpt2(config: EncoderConfig) -> dict[str, Any]:
    dropped = {f'{where}_pdrop': 0.0 for where in ('attn', 'embd', 'resid')}
    return {
        'model_type': 'gpt2',
        'n_embd': config.width,
        'n_layer': config.layers,
        'n_head': config.heads,
        'n_inner': config.hidden,
        'n_positions': config.max_length,
        'activation_function': _ACTIVATIONS[config.activation],
        'layer_norm_epsilon': config.norm_epsilon,
        **dropped,
    }


def _llama(config: EncoderConfig) -> dict[str, Any]:
    return {
        'model_type': 'llama',
        'hidden_size': config.width,
        'intermediate_size': config.hidden,
        'num_hidden_layers': config.layers,
        'num_attention_heads': config.heads,
        'num_key_value_heads': config.kv_heads,
        'head_dim': config.head_width,
        'hidden_act': 'silu',
        'rms_norm_eps': config.norm_epsilon,
        'attention_bias': False,
        'mlp_bias': False,
        'tie_word_embeddings': True,
        'rope_theta': config.rotary_base,
        'rope_parameters': {'rope_type': 'default', 'rope_theta': config.rotary_base},
    }


def write_weights(
    family: Family, encoder: Encoder, rows: int, directory: Path, dtype: str, shard_bytes: int
) -> None:
    """model.safetensors, or shards and their index where there is more than one shard's worth. One
    shard is on the host at a time.

    Args:
      rows: of the vocabulary's table.

    Raises:
      UserError: a weight is beyond the numbers of the dtype.
    """
    tensors = (
        (name, _narrowed(name, array, dtype)) for name, array in written(family, encoder, rows)
    )
    shards = []  # (path, names, bytes)
    for number, shard in enumerate(_shards(tensors, shard_bytes)):
        path = directory / f'.shard-{number}'
        save_file(
            {name: np.ascontiguousarray(array) for name, array in shard.items()},
            path,
            metadata={'format': 'pt'},
        )
        path.chmod(0o644)  # the library lets nobody else read it
        shards.append((path, list(shard), sum(array.nbytes for array in shard.values())))
    if len(shards) == 1:
        shards[0][0].rename(directory / 'model.safetensors')
        return
    names = {
        path: f'model-{number:05d}-of-{len(shards):05d}.safetensors'
        for number, (path, _, _) in enumerate(shards, 1)
    }
    for path, name in names.items():
        path.rename(directory / name)
    where = {tensor: names[path] for path, tensors, _ in shards for tensor in tensors}
    index = {'metadata': {'total_size': sum(size for _, _, size in shards)}, 'weight_map': where}
    write_json(directory / INDEX, index)


def _narrowed(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over='ignore'):  # told below
        narrow = array.astype(DTYPES[dtype], copy=False)
    if not np.isfinite(narrow).all():
        raise UserError(
            f'--dtype {dtype}: {name} has weights up to {np.abs(array).max():.3g}, which it '
            f'cannot hold; take another'
        )
    return narrow


def _shards(
    tensors: Iterator[tuple[str, np.ndarray]], most: int
) -> Iterator[dict[str, np.ndarray]]:
    """Tensor after tensor in shards of at most so many bytes, or of one tensor that is larger."""
    shard: dict[str, np.ndarray] = {}
    size = 0
    for name, array in tensors:
        if shard and size + array.nbytes > most:
            yield shard
            shard, size = {}, 0
        shard[name] = array
        size += array.nbytes
    yield shard
