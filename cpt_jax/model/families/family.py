"""What the loader and the writer need to know of a family of models."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.tensors import Tensor
from cpt_jax.runtime.errors import UserError

Config = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Family:
    """One way of naming and storing a transformer.

    Attributes:
      model_types: of config.json, and transformers' class of each without a head.
      prefixes: that stand before all names, in files of some classes.
      shape: config.json -> arguments of EncoderConfig, without the vocabulary's.
      outer, layer: all tensors of the encoder, and of each layer.
      passed_over: names that a file may have and that no vector depends on: heads, buffers of old
        versions.
      tied: whether the output head is the token table where config.json has no
        `tie_word_embeddings`.
      transposed: whether files hold matrices as [in, out].
    """

    model_types: Mapping[str, str]
    prefixes: tuple[str, ...]
    shape: Callable[[Config], dict[str, Any]]
    outer: Callable[[EncoderConfig], list[Tensor]]
    layer: Callable[[EncoderConfig], list[Tensor]]
    passed_over: tuple[str, ...] = ()
    tied: bool = False
    transposed: bool = False


def choose(config: Config, key: str, known: Mapping[Any, Any], default: Any = None) -> Any:
    """What a value of config.json means. Raises UserError where we do not know it."""
    value = config.get(key, default)
    if value not in known:
        raise UserError(
            f'config.json: {key}={value!r} is not supported; known are '
            f'{", ".join(map(repr, known))}'
        )
    return known[value]


def refuse_unless(config: Config, key: str, *values: Any) -> None:
    """Raises UserError unless a key is absent or has one of some values."""
    if key in config and config[key] not in values:
        raise UserError(
            f'config.json: {key}={config[key]!r} is not supported; it must be '
            f'{" or ".join(map(repr, values))}'
        )


GELUS = {
    'gelu_new': 'gelu',
    'gelu_pytorch_tanh': 'gelu',
    'gelu_fast': 'gelu',
    'gelu': 'gelu_exact',
    'relu': 'relu',
}


def gpt_sizes(config: Config) -> dict[str, Any]:
    """Under the names of GPT-2's config.json."""
    return {
        'width': config['n_embd'],
        'layers': config['n_layer'],
        'heads': config['n_head'],
        'hidden': config.get('n_inner') or 4 * config['n_embd'],
        'max_length': config['n_positions'],
        'norm_epsilon': config.get('layer_norm_epsilon', 1e-5),
        'activation': choose(config, 'activation_function', GELUS, 'gelu_new'),
    }


def usual_sizes(config: Config) -> dict[str, Any]:
    """Under the names of most other config.json."""
    return {
        'width': config['hidden_size'],
        'layers': config['num_hidden_layers'],
        'heads': config['num_attention_heads'],
        'hidden': config['intermediate_size'],
        'max_length': config['max_position_embeddings'],
    }


# Activations of gates, of a feed-forward part with three matrices.
GATES = {
    'silu': 'swiglu',
    'gelu_new': 'geglu',
    'gelu_pytorch_tanh': 'geglu',
    'gelu_fast': 'geglu',
    'gelu': 'geglu_exact',
}


def rope(config: Config) -> dict[str, Any]:
    """Base and scaling of rotary positions: `rope_parameters` (transformers 5), or `rope_theta` and
    `rope_scaling` before.
    """
    given = config.get('rope_parameters') or (config.get('rope_scaling') or {}) | {
        'rope_theta': config.get('rope_theta', 10_000.0)
    }
    return {
        'rotary_base': float(given.get('rope_theta', 10_000.0)),
        'rotary_scaling': _scaling(given, config),
    }


def ropes(config: Config, full_theta: float, local_theta: float) -> dict[str, Any]:
    """The same of full and of local layers: `rope_parameters` has one part for each (transformers
    5).

    Args:
      full_theta, local_theta: the bases where `rope_parameters` does not tell.
    """
    by_kind = config.get('rope_parameters') or {}
    full, local = (by_kind.get(kind) or {} for kind in ('full_attention', 'sliding_attention'))
    # Before transformers 5, which has it of full layers too.
    full = full | (config.get('rope_scaling') or {})
    return {
        'rotary_base': float(full.get('rope_theta', full_theta)),
        'rotary_scaling': _scaling(full, config),
        'local_rotary_base': float(local.get('rope_theta', local_theta)),
        'local_rotary_scaling': _scaling(local, config),
    }


def layer_kinds(config: Config, by_pattern: Callable[[int], bool]) -> dict[str, Any]:
    """Which layers are local: `layer_types`, or where there are none, the rule for a layer's
    number.
    """
    layers = range(config['num_hidden_layers'])
    kinds = {'full_attention': False, 'sliding_attention': True}
    types = config.get('layer_types') or [
        ('full_attention', 'sliding_attention')[by_pattern(layer)] for layer in layers
    ]
    if len(types) != len(layers) or set(types) - kinds.keys():
        raise UserError(
            f'config.json: layer_types must be {" or ".join(kinds)} for each of {len(layers)} '
            f'layers'
        )
    return {'local_layers': tuple(kinds[kind] for kind in types)}


def _scaling(given: Config, config: Config) -> tuple[str | float, ...]:
    """`rotary_scaling` of rotary.rotary_frequencies."""
    kind = given.get('rope_type', given.get('type', 'default'))
    if kind == 'default':
        return ()
    if kind == 'linear':
        return 'linear', float(given['factor'])
    if kind == 'llama3':
        keys = ('factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings')
        return 'llama3', *(float(given[key]) for key in keys)
    if kind == 'yarn':
        return _yarn(given, config)
    raise UserError(
        f"config.json: rope type {kind!r} is not supported; known are 'default', 'linear', "
        f"'llama3', 'yarn'"
    )


def _yarn(given: Config, config: Config) -> tuple[str | float, ...]:
    """As transformers' modeling_rope_utils reads it, its defaults included."""
    longest = config['max_position_embeddings']
    length = (
        config.get('original_max_position_embeddings')
        or given.get('original_max_position_embeddings')
        or longest
    )
    factor = given['factor'] or longest / length
    whole, parts = given.get('mscale'), given.get('mscale_all_dim')

    def lengthened(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0

    attention = given.get('attention_factor')
    if attention is None:
        attention = lengthened(whole) / lengthened(parts) if whole and parts else lengthened(1)
    # `truncate` is read beside the kinds of layers, where there are any, not in them.
    truncated = (config.get('rope_parameters') or config.get('rope_scaling') or {}).get(
        'truncate', True
    )
    slow, fast = given.get('beta_slow') or 1, given.get('beta_fast') or 32
    return (
        'yarn',
        float(factor),
        float(slow),
        float(fast),
        float(length),
        bool(truncated),
        float(attention),
    )
