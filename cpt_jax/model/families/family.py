"""What the loader and the writer need to know of a family of models."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from cpt_jax.errors import UserError
from cpt_jax.model.families.tensors import Tensor
from cpt_jax.model.shape import Shape

Config = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Family:
    """One way of naming and storing a transformer.

    Attributes:
      model_types: of config.json, and transformers' class of each without a head.
      prefixes: that stand before all names, in files of some classes.
      shape: config.json -> arguments of Shape, without the vocabulary's.
      outer, layer: all tensors of the encoder, and of each layer.
      passed_over: names that a file may have and that no vector depends on: heads, buffers of old versions.
      tied: whether the output head is the token table where config.json has no `tie_word_embeddings`.
    """

    model_types: Mapping[str, str]
    prefixes: tuple[str, ...]
    shape: Callable[[Config], dict[str, Any]]
    outer: Callable[[Shape], list[Tensor]]
    layer: Callable[[Shape], list[Tensor]]
    passed_over: tuple[str, ...] = ()
    tied: bool = False


def choose(config: Config, key: str, known: Mapping[Any, Any], default: Any = None) -> Any:
    """What a value of config.json means. Raises UserError where we do not know it."""
    value = config.get(key, default)
    if value not in known:
        raise UserError(f'config.json: {key}={value!r} is not supported; known are {", ".join(map(repr, known))}')
    return known[value]


def refuse_unless(config: Config, key: str, *values: Any) -> None:
    """Raises UserError unless a key is absent or has one of some values."""
    if key in config and config[key] not in values:
        raise UserError(f'config.json: {key}={config[key]!r} is not supported; it must be {" or ".join(map(repr, values))}')


GELUS = {'gelu_new': 'gelu', 'gelu_pytorch_tanh': 'gelu', 'gelu_fast': 'gelu', 'gelu': 'gelu_exact', 'relu': 'relu'}


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


def rope(config: Config) -> dict[str, Any]:
    """Base and scaling of rotary positions: `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` before."""
    given = config.get('rope_parameters') or (config.get('rope_scaling') or {}) | {'rope_theta': config.get('rope_theta', 10_000.0)}
    base = {'rotary_base': float(given.get('rope_theta', 10_000.0))}
    kind = given.get('rope_type', given.get('type', 'default'))
    if kind == 'default':
        return base
    if kind == 'linear':
        return base | {'rotary_scaling': ('linear', float(given['factor']))}
    if kind == 'llama3':
        keys = ('factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings')
        return base | {'rotary_scaling': ('llama3', *(float(given[key]) for key in keys))}
    raise UserError(f"config.json: rope type {kind!r} is not supported; known are 'default', 'linear', 'llama3'")
