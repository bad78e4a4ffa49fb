"""GPT-J and CodeGen: one norm a layer, both halves read it; neighbouring units turn together; no
biases in attention.
"""

from typing import Any

import numpy as np

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.family import Config, Family, gpt_sizes
from cpt_jax.model.families.tensors import (
    Tensor,
    affine,
    linear_with_bias,
    out_of_heads,
    projections,
    same,
)

# CodeGen was trained on four TPU cores, and each core's query, value and key stand together in the
# file.
CODEGEN_PARTS = 4


def _shape(config: Config) -> dict[str, Any]:
    return gpt_sizes(config) | {
        'positions': 'rotary',
        'rotary_width': config.get('rotary_dim') or config['n_embd'] // config['n_head'],
        'rotary_pairs': 'neighbours',
        'parallel': 'one norm',
        'qkv_bias': False,
        'out_bias': False,
    }


def _outer(config: EncoderConfig) -> list[Tensor]:
    del config
    return [same('wte.weight', 'token_embedding'), *affine('ln_f', 'final_norm')]


def _layer(config: EncoderConfig) -> list[Tensor]:
    return [
        *projections(
            [f'h.{{i}}.attn.{name}_proj' for name in 'qkv'], config.head_width, bias=False
        ),
        *_rest(config),
    ]


def _codegen_layer(config: EncoderConfig) -> list[Tensor]:
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

    joined = Tensor(
        'h.{i}.attn.qkv_proj.weight',
        ('attention.query', 'attention.key', 'attention.value'),
        read,
        write,
    )
    return [joined, *_rest(config)]


def _rest(config: EncoderConfig) -> list[Tensor]:
    return [
        *affine('h.{i}.ln_1', 'attention_norm'),
        out_of_heads('h.{i}.attn.out_proj.weight', 'attention.out', config.head_width),
        *linear_with_bias('h.{i}.mlp.fc_in', 'feed_forward.up'),
        *linear_with_bias('h.{i}.mlp.fc_out', 'feed_forward.down'),
    ]


_PASSED_OVER = (
    'lm_head.weight', 'lm_head.bias', 'h.{i}.attn.bias', 'h.{i}.attn.masked_bias',
    'h.{i}.attn.causal_mask', 'h.{i}.attn.embed_positions',
)  # fmt: skip
GPTJ = Family({'gptj': 'GPTJModel'}, ('', 'transformer.'), _shape, _outer, _layer, _PASSED_OVER)
CODEGEN = Family(
    {'codegen': 'CodeGenModel'}, ('', 'transformer.'), _shape, _outer, _codegen_layer, _PASSED_OVER
)
