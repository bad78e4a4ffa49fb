"""Description of a family of pretrained models, for loading and writing them."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.config_keys import ROPE_KEYS, TYPES_NEEDED
from cpt_jax.model.families.tensors import StoredTensor, TensorMapping
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_checks import check_values

Config = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Family:
    """Names and layouts of a transformer's tensors in files, and its config.json.

    Attributes:
      model_types: model_type in config.json -> transformers' class without a head.
      prefixes: prefixes that all tensor names may have, depending on the class that was saved.
      shape: function from config.json to arguments of EncoderConfig, without the vocabulary size.
      outer: function from EncoderConfig to the tensors outside of the layers.
      layer: function from EncoderConfig to the tensors of each layer.
      ignored_names: tensors that a file may contain but that no vector depends on: output heads and
        buffers of old versions.
      tied: default of `tie_word_embeddings`: whether the output head is the token table.
      head: name of the output head's matrix.
      transposed: whether files store matrices as [in, out].
      count_reserved_positions: function from config.json to the number of rows before that of
        position 0 that `max_position_embeddings` includes.
      default_limit: function from config.json to the maximum tokens of a text if no file of
        sentence-transformers gives it; None: as many as the model has positions.
      stored: tensors that published files name or join otherwise than transformers' modules, whose
        names `outer` and `layer` use. Both forms are read, and that of `stored` is written.
    """

    model_types: Mapping[str, str]
    prefixes: tuple[str, ...]
    shape: Callable[[Config], dict[str, Any]]
    outer: Callable[[EncoderConfig], list[TensorMapping]]
    layer: Callable[[EncoderConfig], list[TensorMapping]]
    ignored_names: tuple[str, ...] = ()
    tied: bool = False
    head: str = 'lm_head.weight'
    transposed: bool = False
    count_reserved_positions: Callable[[Config], int] = lambda config: 0
    default_limit: Callable[[Config], int | None] = lambda config: None
    stored: tuple[StoredTensor, ...] = ()


# Modules that transformers' classes for classification, question answering and multiple choice add
# to a model, and buffers that older versions stored. No vector depends on them.
_TASK_HEADS = (
    'score',
    'classifier',
    'pre_classifier',
    'qa_outputs',
    'multiple_choice_head',
    'sequence_summary',
)
_BUFFERS = ('rotary_emb.inv_freq', 'embeddings.position_ids')


def is_head_or_buffer(name: str) -> bool:
    """Whether a tensor belongs to the head of another task or is a buffer, in any family.

    Args:
      name: name of the tensor without the family's prefix.
    """
    return name.split('.')[0] in _TASK_HEADS or name.endswith(_BUFFERS)


def translate_config_value(
    config: Config, key: str, known: Mapping[Any, Any], default: Any = None
) -> Any:
    """Returns our name for a value of config.json. Raises UserError if the value is not known.

    Args:
      config: content of config.json.
      key: key to read.
      known: value in config.json -> our name.
      default: value if the key is absent.
    """
    value = config.get(key, default)
    if value not in [*known]:  # a list cannot be looked up in a dict
        raise UserError(
            f'config.json: {key}={value!r} is not supported; supported are '
            f'{", ".join(map(repr, known))}'
        )
    return known[value]


def refuse_unless(config: Config, key: str, *values: Any) -> None:
    """Raises UserError if a key of config.json is present with a value other than `values`."""
    if key in config and config[key] not in values:
        raise UserError(
            f'config.json: {key}={config[key]!r} is not supported; it must be '
            f'{" or ".join(map(repr, values))}'
        )


def read_token_types(config: Config) -> int:
    """Reads the number of token types of a model that, unlike GTE, cannot do without them.

    Raises:
      UserError: it is 0.
    """
    check_values(Path('config.json'), config, TYPES_NEEDED)
    return config.get('type_vocab_size', 2)


GELUS = {
    'gelu_new': 'gelu',
    'gelu_pytorch_tanh': 'gelu',
    'gelu_fast': 'gelu',
    'gelu': 'gelu_exact',
    'relu': 'relu',
}


def read_gpt_sizes(config: Config) -> dict[str, Any]:
    """Reads the sizes of a model from config.json with GPT-2's keys."""
    return {
        'width': config['n_embd'],
        'layers': config['n_layer'],
        'heads': config['n_head'],
        'hidden': config.get('n_inner') or 4 * config['n_embd'],
        'max_length': config['n_positions'],
        'norm_epsilon': config.get('layer_norm_epsilon', 1e-5),
        'activation': translate_config_value(config, 'activation_function', GELUS, 'gelu_new'),
    }


def read_usual_sizes(config: Config) -> dict[str, Any]:
    """Reads the sizes of a model from config.json with the keys of most other families."""
    return {
        'width': config['hidden_size'],
        'layers': config['num_hidden_layers'],
        'heads': config['num_attention_heads'],
        'hidden': config['intermediate_size'],
        'max_length': config['max_position_embeddings'],
    }


# Name of an activation in config.json -> our name in a gated feed-forward part.
GATES = {
    'silu': 'swiglu',
    'gelu_new': 'geglu',
    'gelu_pytorch_tanh': 'geglu',
    'gelu_fast': 'geglu',
    'gelu': 'geglu_exact',
}


def read_rope(config: Config, default_theta: float = 10_000.0) -> dict[str, Any]:
    """Reads base and scaling of rotary positions: from `rope_parameters` (transformers 5), or from
    `rope_theta` and `rope_scaling` (older versions).

    As in transformers, `rope_scaling` goes before `rope_parameters`, and a `rope_theta` in either
    before that of config.json.

    Args:
      config: content of config.json.
      default_theta: base if config.json has none.
    """
    given: Config = config.get('rope_scaling') or config.get('rope_parameters') or {}
    return {
        'rotary_base': float(given.get('rope_theta', config.get('rope_theta', default_theta))),
        'rotary_scaling': _read_rope_scaling(given, config),
    }


def read_ropes(config: Config, full_theta: float, local_theta: float) -> dict[str, Any]:
    """Reads base and scaling of rotary positions, for full and for local layers.

    In transformers 5, `rope_parameters` has one section for each kind of layer.

    Args:
      config: content of config.json.
      full_theta: base of full layers if `rope_parameters` has none.
      local_theta: base of local layers if `rope_parameters` has none.
    """
    by_kind = config.get('rope_parameters') or {}
    full, local = (by_kind.get(kind) or {} for kind in ('full_attention', 'sliding_attention'))
    # Older versions of transformers: `rope_scaling` applies to full layers.
    full = full | (config.get('rope_scaling') or {})
    return {
        'rotary_base': float(full.get('rope_theta', full_theta)),
        'rotary_scaling': _read_rope_scaling(full, config),
        'local_rotary_base': float(local.get('rope_theta', local_theta)),
        'local_rotary_scaling': _read_rope_scaling(local, config),
    }


def read_layer_types(config: Config, by_pattern: Callable[[int], bool]) -> dict[str, Any]:
    """Reads which layers are local.

    Args:
      config: content of config.json.
      by_pattern: function from the index of a layer to whether it is local, used if config.json has
        no `layer_types`.
    """
    layers = range(config['num_hidden_layers'])
    kinds = {'full_attention': False, 'sliding_attention': True}
    types = config.get('layer_types') or [
        ('full_attention', 'sliding_attention')[by_pattern(layer)] for layer in layers
    ]
    if len(types) != len(layers) or set(types) - kinds.keys():
        raise UserError(
            f'config.json: layer_types must be {" or ".join(kinds)} for each of the '
            f'{len(layers)} layers'
        )
    return {'local_layers': tuple(kinds[kind] for kind in types)}


def _read_rope_scaling(given: Config, config: Config) -> tuple[str | float, ...]:
    """Returns the scaling in the form of `rotary.compute_rotary_frequencies`."""
    check_values(Path('config.json'), given, ROPE_KEYS)
    kind = given.get('rope_type', given.get('type', 'default'))
    if kind == 'default':
        return ()
    if kind == 'linear':
        return 'linear', float(given['factor'])
    if kind == 'llama3':
        keys = ('factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings')
        return 'llama3', *(float(given[key]) for key in keys)
    if kind == 'yarn':
        return _read_yarn(given, config)
    raise UserError(
        f"config.json: rope type {kind!r} is not supported; supported are 'default', 'linear', "
        f"'llama3', 'yarn'"
    )


def _read_yarn(given: Config, config: Config) -> tuple[str | float, ...]:
    """Reads YaRN's scaling with the defaults of transformers' modeling_rope_utils."""
    longest = config['max_position_embeddings']
    length = (
        config.get('original_max_position_embeddings')
        or given.get('original_max_position_embeddings')
        or longest
    )
    factor = given['factor'] or longest / length
    mscale = given.get('mscale')
    mscale_all_dim = given.get('mscale_all_dim')

    def compute_mscale(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0

    attention = given.get('attention_factor')
    if attention is None and mscale and mscale_all_dim:
        attention = compute_mscale(mscale) / compute_mscale(mscale_all_dim)
    elif attention is None:
        attention = compute_mscale(1)
    # `truncate` is read at the top level, even if there is one section for each kind of layer.
    top_level = config.get('rope_parameters') or config.get('rope_scaling') or {}
    truncated = top_level.get('truncate', True)
    slow = given.get('beta_slow') or 1
    fast = given.get('beta_fast') or 32
    return (
        'yarn',
        float(factor),
        float(slow),
        float(fast),
        float(length),
        bool(truncated),
        float(attention),
    )
