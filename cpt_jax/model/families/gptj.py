"""GPT-J and CodeGen: attention and feed-forward part read the same norm; rotary positions rotate
neighbouring dimensions; attention has no biases.
"""

from typing import Any

import numpy as np

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.family import Config, Family, read_gpt_sizes
from cpt_jax.model.families.tensors import (
    TensorMapping,
    map_linear_with_bias,
    map_norm,
    map_out_of_heads,
    map_projections,
    map_unchanged,
)

# CodeGen was trained on four TPU cores. The file has query, value and key of the first core, then
# those of the second core, and so on.
CODEGEN_PARTS = 4


def _read_config(config: Config) -> dict[str, Any]:
    return read_gpt_sizes(config) | {
        'positions': 'rotary',
        'rotary_width': config.get('rotary_dim') or config['n_embd'] // config['n_head'],
        'rotary_pairs': 'neighbours',
        'parallel': 'one norm',
        'qkv_bias': False,
        'out_bias': False,
    }


def _list_outer_tensors(config: EncoderConfig) -> list[TensorMapping]:
    del config
    return [map_unchanged('wte.weight', 'token_embedding'), *map_norm('ln_f', 'final_norm')]


def _list_layer_tensors(config: EncoderConfig) -> list[TensorMapping]:
    return [
        *map_projections(
            [f'h.{{i}}.attn.{name}_proj' for name in 'qkv'], config.head_width, bias=False
        ),
        *_list_shared_tensors(config),
    ]


def _list_codegen_layer_tensors(config: EncoderConfig) -> list[TensorMapping]:
    k = config.head_width

    def read(array: np.ndarray) -> list[np.ndarray]:
        query, value, key = array.reshape(CODEGEN_PARTS, 3, -1, array.shape[1]).swapaxes(0, 1)
        return [
            part.reshape(-1, k, array.shape[1]).transpose(2, 0, 1) for part in (query, key, value)
        ]

    def write(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
        parts = [
            part.transpose(1, 2, 0).reshape(CODEGEN_PARTS, -1, len(part))
            for part in (query, value, key)
        ]
        return np.stack(parts, 1).reshape(-1, len(query))

    joined = TensorMapping(
        'h.{i}.attn.qkv_proj.weight',
        ('attention.query', 'attention.key', 'attention.value'),
        read,
        write,
    )
    return [joined, *_list_shared_tensors(config)]


def _list_shared_tensors(config: EncoderConfig) -> list[TensorMapping]:
    return [
        *map_norm('h.{i}.ln_1', 'attention_norm'),
        map_out_of_heads('h.{i}.attn.out_proj.weight', 'attention.out', config.head_width),
        *map_linear_with_bias('h.{i}.mlp.fc_in', 'feed_forward.up'),
        *map_linear_with_bias('h.{i}.mlp.fc_out', 'feed_forward.down'),
    ]


_IGNORED_NAMES = (
    'lm_head.weight', 'lm_head.bias', 'h.{i}.attn.bias', 'h.{i}.attn.masked_bias',
    'h.{i}.attn.causal_mask', 'h.{i}.attn.embed_positions',
)  # fmt: skip
GPTJ = Family(
    model_types={'gptj': 'GPTJModel'},
    prefixes=('', 'transformer.'),
    shape=_read_config,
    outer=_list_outer_tensors,
    layer=_list_layer_tensors,
    ignored_names=_IGNORED_NAMES,
)
CODEGEN = Family(
    model_types={'codegen': 'CodeGenModel'},
    prefixes=('', 'transformer.'),
    shape=_read_config,
    outer=_list_outer_tensors,
    layer=_list_codegen_layer_tensors,
    ignored_names=_IGNORED_NAMES,
)
