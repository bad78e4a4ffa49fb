"""GPT-2."""

from typing import Any

import numpy as np

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.family import Config, Family, gpt_sizes, refuse_unless
from cpt_jax.model.families.tensors import Tensor, affine, same


def _shape(config: Config) -> dict[str, Any]:
    refuse_unless(config, 'scale_attn_by_inverse_layer_idx', False)
    refuse_unless(config, 'scale_attn_weights', True)
    return gpt_sizes(config)


def _outer(config: EncoderConfig) -> list[Tensor]:
    del config
    return [
        same('wte.weight', 'token_embedding'),
        same('wpe.weight', 'position_embedding'),
        *affine('ln_f', 'final_norm'),
    ]


def _layer(config: EncoderConfig) -> list[Tensor]:
    """Its Conv1D holds [in, out]; query, key and value stand side by side."""
    k = config.head_width
    parameters = ('attention.query', 'attention.key', 'attention.value')
    return [
        *affine('h.{i}.ln_1', 'attention_norm'),
        *affine('h.{i}.ln_2', 'feed_forward_norm'),
        Tensor(
            'h.{i}.attn.c_attn.weight',
            parameters,
            lambda array: [part.reshape(len(part), -1, k) for part in np.split(array, 3, axis=1)],
            lambda *parts: np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1),
        ),
        Tensor(
            'h.{i}.attn.c_attn.bias',
            tuple(f'{name}_bias' for name in parameters),
            lambda array: [part.reshape(-1, k) for part in np.split(array, 3)],
            lambda *parts: np.concatenate([part.reshape(-1) for part in parts]),
        ),
        Tensor(
            'h.{i}.attn.c_proj.weight',
            ('attention.out',),
            lambda array: (array.reshape(-1, k, array.shape[1]),),
            lambda array: array.reshape(-1, array.shape[-1]),
        ),
        same('h.{i}.attn.c_proj.bias', 'attention.out_bias'),
        same('h.{i}.mlp.c_fc.weight', 'feed_forward.up'),
        same('h.{i}.mlp.c_fc.bias', 'feed_forward.up_bias'),
        same('h.{i}.mlp.c_proj.weight', 'feed_forward.down'),
        same('h.{i}.mlp.c_proj.bias', 'feed_forward.down_bias'),
    ]


_PASSED_OVER = ('lm_head.weight', 'h.{i}.attn.bias', 'h.{i}.attn.masked_bias')
GPT2 = Family(
    {'gpt2': 'GPT2Model'},
    ('', 'transformer.'),
    _shape,
    _outer,
    _layer,
    _PASSED_OVER,
    tied=True,
    transposed=True,
)
