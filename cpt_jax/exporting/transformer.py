"""Export of an encoder as config.json and safetensors files of transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from cpt_jax.exporting.weight_shards import ShardPlan
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.families.family import Family
from cpt_jax.model.families.known import find_family
from cpt_jax.model.families.write import count_elements, iterate_tensors
from cpt_jax.runtime.errors import UserError

DTYPES = {'float32': np.float32, 'bfloat16': ml_dtypes.bfloat16, 'float16': np.float16}

# Properties of every layer of GPT-2 and LLaMA. A model trained from scratch is exported as the one
# whose properties it has.
_GPT2 = {'positions': 'learned', 'norm': 'layernorm', 'bias': True}
_LLAMA = {'positions': 'rotary', 'norm': 'rmsnorm', 'bias': False}
# transformers' names by our names of activations.
_ACTIVATIONS = {'gelu': 'gelu_new', 'gelu_exact': 'gelu', 'relu': 'relu'}
# Model types that transformers always runs with causal attention, whatever config.json says.
_ALWAYS_CAUSAL = ('gpt_neox', 'gptj', 'codegen')


def make_config_json(
    encoder_config: EncoderConfig, pretrained: Mapping[str, Any] | None, dtype: str
) -> tuple[Family, dict[str, Any]]:
    """Returns the family to export an encoder as, and its config.json for transformers 4 and 5.

    Args:
      encoder_config: architecture of the encoder.
      pretrained: config.json of the model that training started from; None if from scratch.
      dtype: dtype of the exported weights.

    Raises:
      UserError: no family has this architecture.
    """
    own = dict(pretrained) if pretrained else _make_config_from_scratch(encoder_config)
    kind = own['model_type']
    if not encoder_config.causal and kind in _ALWAYS_CAUSAL:
        raise UserError(
            f'--model: cannot be exported: it attends in both directions (model.causal=False), and '
            f'transformers runs {kind} with causal attention only'
        )
    if encoder_config.rotary_pairs == 'neighbours' and kind == 'llama':
        raise UserError(
            '--model: cannot be exported: it started from a model of llama2.c, whose rotary '
            'embeddings pair other dimensions than those of transformers'
        )
    family = find_family(own)
    config = own | {
        'architectures': [family.model_types[kind]],
        'vocab_size': encoder_config.vocab_size,
        'max_position_embeddings': encoder_config.max_length + family.count_reserved_positions(own),
        'dtype': dtype,
        'torch_dtype': dtype,
        'use_cache': False,
        **_make_attention_keys(encoder_config.causal, own),
        **_make_older_rope_keys(own),
    }
    reread = EncoderConfig(
        vocab_size=encoder_config.vocab_size,
        **family.shape(config) | {'causal': encoder_config.causal},
    )
    differing = [
        key
        for key in vars(reread)
        if key not in _NOT_EXPORTED and getattr(reread, key) != getattr(encoder_config, key)
    ]
    if 'max_length' in differing and not encoder_config.causal and encoder_config.local_layers:
        raise UserError(
            f'--model: cannot be exported: it attends in both directions (model.causal=False) '
            f'within the sliding window of a causal {kind}, which transformers computes otherwise; '
            f'train it again with this version'
        )
    if differing:
        raise AssertionError(f'config.json of {kind} describes a model with another {differing}')
    return family, config


def _make_attention_keys(causal: bool, own: Mapping[str, Any]) -> dict[str, bool]:
    """Returns the keys that make attention causal or bidirectional, for all readers.

    In Gemma 3, use_bidirectional_attention also means that a sliding window counts both directions,
    so a true value is kept and never set.

    Args:
      causal: whether attention is causal.
      own: config.json of the pretrained model, or from scratch.
    """
    if own['model_type'] != 'gemma3_text':
        return {'is_causal': causal, 'use_bidirectional_attention': not causal}
    if own.get('use_bidirectional_attention'):
        return {}
    return {'is_causal': causal, 'use_bidirectional_attention': False}


def _make_older_rope_keys(own: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys that transformers 4 and other readers use instead of `rope_parameters`.

    Returns {} if there are no rotary embeddings, or if layers differ in them.
    """
    rope = own.get('rope_parameters')
    if not rope or 'rope_theta' not in rope:
        return {}
    keys = {'rope_theta': rope['rope_theta']}
    scaling = {key: value for key, value in rope.items() if key != 'rope_theta'}
    if scaling.get('rope_type', 'default') != 'default':
        keys['rope_scaling'] = scaling
    return keys


# Fields of EncoderConfig that config.json does not contain: how the encoder is trained and
# computed, and its output head, which is not exported.
_NOT_EXPORTED = (
    'init',
    'dropout',
    'remat',
    'attention',
    'dtype',
    'layer_loop',
    'gradient_sums',
    'pooling',
    'tied',
    'dense',
    'freeze_dense',
)


def _make_config_from_scratch(config: EncoderConfig) -> dict[str, Any]:
    """Returns the config.json of a model trained from scratch, as a GPT-2 or a LLaMA.

    Raises:
      UserError: it has the architecture of neither.
    """
    if (
        _has_properties(config, _GPT2)
        and config.activation != 'swiglu'
        and config.kv_heads * config.head_width == config.width
    ):
        return _make_gpt2_config(config)
    if _has_properties(config, _LLAMA) and config.activation == 'swiglu':
        return _make_llama_config(config)
    parts = ', '.join(
        f'model.{key}={getattr(config, key)}'
        for key in ('positions', 'norm', 'activation', 'bias', 'kv_heads', 'head_width')
    )
    raise UserError(
        f'--model: cannot be exported: no other library has this combination of parts: {parts}. '
        'GPT-2 has learned positions, layernorm, biases and as many kv_heads as heads; LLaMA has '
        'rotary positions, rmsnorm, swiglu and no biases. Train with one of the two to export'
    )


def _has_properties(config: EncoderConfig, parts: Mapping[str, Any]) -> bool:
    return all(getattr(config, key) == value for key, value in parts.items())


def _make_gpt2_config(config: EncoderConfig) -> dict[str, Any]:
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


def _make_llama_config(config: EncoderConfig) -> dict[str, Any]:
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
) -> ShardPlan:
    """Writes model.safetensors, or several shards if it would be too large, without their index.

    Several processes take turns: process k of P writes the shards k, k + P, k + 2 P and so on. Only
    one shard and one tensor are in the memory of a host at a time, beside its part of the weights.

    Args:
      family: family to write the weights as.
      encoder: the encoder.
      rows: int, rows of the token table to write.
      directory: directory to write to.
      dtype: dtype of the weights, a key of DTYPES.
      shard_bytes: int, maximum bytes per file, unless a single tensor is larger.

    Returns:
      The files that all processes write together.

    Raises:
      UserError: a weight is out of the range of the dtype.
    """
    item_bytes = np.dtype(DTYPES[dtype]).itemsize
    plan = ShardPlan.make(
        {name: n * item_bytes for name, n in count_elements(family, encoder, rows).items()},
        shard_bytes,
    )
    own = iterate_tensors(family, encoder, rows, plan.list_own_names())
    plan.write(((name, _cast_weights(name, array, dtype)) for name, array in own), directory)
    return plan


def _cast_weights(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """Casts a weight to a dtype. Raises UserError if it overflows."""
    with np.errstate(over='ignore'):  # reported below as an error
        narrow = array.astype(DTYPES[dtype], copy=False)
    if not np.isfinite(narrow).all():
        raise UserError(
            f'--dtype {dtype}: {name} has weights up to {np.abs(array).max():.3g}, which '
            f'{dtype} cannot represent: choose another dtype'
        )
    return narrow
