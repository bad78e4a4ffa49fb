"""GPT-NeoX and Pythia: both halves of a layer read its input; a part of each head turns."""

from typing import Any

import numpy as np

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.family import (
    GELUS,
    Config,
    Family,
    choose,
    refuse_unless,
    rope,
    usual_sizes,
)
from cpt_jax.model.families.tensors import Tensor, affine, linear_with_bias, out_of_heads, same


def _shape(config: Config) -> dict[str, Any]:
    refuse_unless(config, 'attention_bias', True)
    given = dict(config)
    # Its name before transformers 5.
    given.setdefault('rope_theta', config.get('rotary_emb_base', 10_000))
    head_width = config['hidden_size'] // config['num_attention_heads']
    share = (config.get('rope_parameters') or {}).get(
        'partial_rotary_factor', config.get('rotary_pct', 0.25)
    )
    return usual_sizes(config) | {
        'norm_epsilon': config.get('layer_norm_eps', 1e-5),
        'activation': choose(config, 'hidden_act', GELUS, 'gelu'),
        'positions': 'rotary',
        'rotary_width': int(head_width * share),
        'parallel': 'two norms' if config.get('use_parallel_residual', True) else 'no',
        **rope(given),
    }


def _outer(config: EncoderConfig) -> list[Tensor]:
    del config
    return [same('embed_in.weight', 'token_embedding'), *affine('final_layer_norm', 'final_norm')]


def _layer(config: EncoderConfig) -> list[Tensor]:
    """Query, key and value of one head stand side by side, head after head."""
    k = config.head_width
    layer, parameters = 'layers.{i}', ('attention.query', 'attention.key', 'attention.value')
    return [
        *affine(f'{layer}.input_layernorm', 'attention_norm'),
        *affine(f'{layer}.post_attention_layernorm', 'feed_forward_norm'),
        Tensor(
            f'{layer}.attention.query_key_value.weight',
            parameters,
            lambda array: list(array.reshape(-1, 3, k, array.shape[1]).transpose(1, 3, 0, 2)),
            lambda *parts: np.stack(parts).transpose(2, 0, 3, 1).reshape(-1, len(parts[0])),
        ),
        Tensor(
            f'{layer}.attention.query_key_value.bias',
            tuple(f'{name}_bias' for name in parameters),
            lambda array: list(array.reshape(-1, 3, k).swapaxes(0, 1)),
            lambda *parts: np.stack(parts).swapaxes(0, 1).reshape(-1),
        ),
        out_of_heads(f'{layer}.attention.dense.weight', 'attention.out', k),
        same(f'{layer}.attention.dense.bias', 'attention.out_bias'),
        *linear_with_bias(f'{layer}.mlp.dense_h_to_4h', 'feed_forward.up'),
        *linear_with_bias(f'{layer}.mlp.dense_4h_to_h', 'feed_forward.down'),
    ]


_BUFFERS = ('rotary_emb.inv_freq', 'bias', 'masked_bias')
NEOX = Family(
    {'gpt_neox': 'GPTNeoXModel'},
    ('', 'gpt_neox.'),
    _shape,
    _outer,
    _layer,
    (
        'embed_out.weight',
        'lm_head.weight',
        *(f'layers.{{i}}.attention.{name}' for name in _BUFFERS),
    ),
)
