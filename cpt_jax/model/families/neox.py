"""GPT-NeoX and Pythia: attention and feed-forward part both read the input of the layer; only some
dimensions of each head are rotated.
"""

from typing import Any

import numpy as np

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.family import (
    GELUS,
    Config,
    Family,
    read_rope,
    read_usual_sizes,
    refuse_unless,
    translate_config_value,
)
from cpt_jax.model.families.tensors import (
    TensorMapping,
    map_linear_with_bias,
    map_norm,
    map_out_of_heads,
    map_unchanged,
)


def _read_config(config: Config) -> dict[str, Any]:
    refuse_unless(config, 'attention_bias', True)
    given = dict(config)
    # Key of older versions of transformers.
    given.setdefault('rope_theta', config.get('rotary_emb_base', 10_000))
    head_width = config['hidden_size'] // config['num_attention_heads']
    rotary_fraction = (config.get('rope_parameters') or {}).get(
        'partial_rotary_factor', config.get('rotary_pct', 0.25)
    )
    return read_usual_sizes(config) | {
        'norm_epsilon': config.get('layer_norm_eps', 1e-5),
        'activation': translate_config_value(config, 'hidden_act', GELUS, 'gelu'),
        'positions': 'rotary',
        'rotary_width': int(head_width * rotary_fraction),
        'parallel': 'two norms' if config.get('use_parallel_residual', True) else 'no',
        **read_rope(given),
    }


def _list_outer_tensors(config: EncoderConfig) -> list[TensorMapping]:
    del config
    return [
        map_unchanged('embed_in.weight', 'token_embedding'),
        *map_norm('final_layer_norm', 'final_norm'),
    ]


def _list_layer_tensors(config: EncoderConfig) -> list[TensorMapping]:
    """Lists the tensors of a layer. Query, key and value are concatenated head by head."""
    k = config.head_width
    layer = 'layers.{i}'
    parameters = ('attention.query', 'attention.key', 'attention.value')
    return [
        *map_norm(f'{layer}.input_layernorm', 'attention_norm'),
        *map_norm(f'{layer}.post_attention_layernorm', 'feed_forward_norm'),
        TensorMapping(
            f'{layer}.attention.query_key_value.weight',
            parameters,
            lambda array: list(array.reshape(-1, 3, k, array.shape[1]).transpose(1, 3, 0, 2)),
            lambda *parts: np.stack(parts).transpose(2, 0, 3, 1).reshape(-1, len(parts[0])),
        ),
        TensorMapping(
            f'{layer}.attention.query_key_value.bias',
            tuple(f'{name}_bias' for name in parameters),
            lambda array: list(array.reshape(-1, 3, k).swapaxes(0, 1)),
            lambda *parts: np.stack(parts).swapaxes(0, 1).reshape(-1),
        ),
        map_out_of_heads(f'{layer}.attention.dense.weight', 'attention.out', k),
        map_unchanged(f'{layer}.attention.dense.bias', 'attention.out_bias'),
        *map_linear_with_bias(f'{layer}.mlp.dense_h_to_4h', 'feed_forward.up'),
        *map_linear_with_bias(f'{layer}.mlp.dense_4h_to_h', 'feed_forward.down'),
    ]


_BUFFERS = ('rotary_emb.inv_freq', 'bias', 'masked_bias')
NEOX = Family(
    model_types={'gpt_neox': 'GPTNeoXModel'},
    prefixes=('', 'gpt_neox.'),
    shape=_read_config,
    outer=_list_outer_tensors,
    layer=_list_layer_tensors,
    ignored_names=(
        'embed_out.weight',
        'lm_head.weight',
        *(f'layers.{{i}}.attention.{name}' for name in _BUFFERS),
    ),
    head='embed_out.weight',
)
