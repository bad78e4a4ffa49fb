"""ModernBERT: bidirectional attention, to the whole text in some layers and within a window in the
others; GeGLU; no norm before the first layer.
"""

from typing import Any

import numpy as np

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.family import (
    GATES,
    Config,
    Family,
    read_layer_types,
    read_ropes,
    read_usual_sizes,
    refuse_unless,
    translate_config_value,
)
from cpt_jax.model.families.tensors import (
    TensorMapping,
    map_linear,
    map_norm,
    map_out_of_heads,
    map_unchanged,
)


def _read_config(config: Config) -> dict[str, Any]:
    refuse_unless(config, 'mlp_bias', False)
    refuse_unless(config, 'rope_scaling', None)
    period = config.get('global_attn_every_n_layers', 3)
    return read_usual_sizes(config) | {
        'positions': 'rotary',
        'norm_epsilon': config.get('norm_eps', 1e-5),
        'norm_bias': bool(config.get('norm_bias', False)),
        'first_norm': False,
        'embedding_norm': True,
        'activation': translate_config_value(config, 'hidden_activation', GATES, 'gelu'),
        'bias': False,
        'qkv_bias': bool(config.get('attention_bias', False)),
        'out_bias': bool(config.get('attention_bias', False)),
        'causal': False,
        'window': config.get('local_attention', 128) // 2,  # config.json counts both sides together
        'pooling': 'mean',
        **read_layer_types(config, lambda layer: layer % period > 0),
        **read_ropes(
            config,
            config.get('global_rope_theta', 160_000.0),
            config.get('local_rope_theta', 10_000.0),
        ),
    }


def _list_outer_tensors(config: EncoderConfig) -> list[TensorMapping]:
    return [
        map_unchanged('embeddings.tok_embeddings.weight', 'token_embedding'),
        *map_norm('embeddings.norm', 'embedding_norm', config.norm_bias),
        *map_norm('final_norm', 'final_norm', config.norm_bias),
    ]


def _list_layer_tensors(config: EncoderConfig) -> list[TensorMapping]:
    """Lists the tensors of a layer. Query, key and value are concatenated along out; so are gate
    and up projection.
    """
    layer, k = 'layers.{i}', config.head_width
    parameters = ('attention.query', 'attention.key', 'attention.value')
    biases = [
        TensorMapping(
            f'{layer}.attn.Wqkv.bias',
            tuple(f'{name}_bias' for name in parameters),
            lambda array: list(array.reshape(3, -1, k)),
            lambda *parts: np.stack(parts).reshape(-1),
        ),
        map_unchanged(f'{layer}.attn.Wo.bias', 'attention.out_bias'),
    ]
    return [
        *(
            tensor._replace(first=1)
            for tensor in map_norm(f'{layer}.attn_norm', 'attention_norm', config.norm_bias)
        ),
        TensorMapping(
            f'{layer}.attn.Wqkv.weight',
            parameters,
            lambda array: list(array.reshape(3, -1, k, array.shape[1]).transpose(0, 3, 1, 2)),
            lambda *parts: np.stack(parts).transpose(0, 2, 3, 1).reshape(-1, len(parts[0])),
        ),
        map_out_of_heads(f'{layer}.attn.Wo.weight', 'attention.out', k),
        *(biases if config.qkv_bias else []),
        *map_norm(f'{layer}.mlp_norm', 'feed_forward_norm', config.norm_bias),
        TensorMapping(
            f'{layer}.mlp.Wi.weight',
            ('feed_forward.gate', 'feed_forward.up'),
            lambda array: [part.T for part in np.split(array, 2)],
            lambda gate, up: np.concatenate([gate.T, up.T]),
        ),
        map_linear(f'{layer}.mlp.Wo.weight', 'feed_forward.down'),
    ]


MODERNBERT = Family(
    model_types={'modernbert': 'ModernBertModel'},
    prefixes=('', 'model.'),
    shape=_read_config,
    outer=_list_outer_tensors,
    layer=_list_layer_tensors,
    ignored_names=(
        'head.dense.weight',
        'head.dense.bias',
        'head.norm.weight',
        'head.norm.bias',
        'decoder.weight',
        'decoder.bias',
    ),
    head='decoder.weight',
)
