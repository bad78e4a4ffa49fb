"""GPT-2: learned positions; matrices are stored as [in, out]."""

from typing import Any

import numpy as np

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.family import Config, Family, read_gpt_sizes, refuse_unless
from cpt_jax.model.families.tensors import TensorMapping, map_norm, map_unchanged


def _read_config(config: Config) -> dict[str, Any]:
    refuse_unless(config, 'scale_attn_by_inverse_layer_idx', False)
    refuse_unless(config, 'scale_attn_weights', True)
    return read_gpt_sizes(config)


def _list_outer_tensors(config: EncoderConfig) -> list[TensorMapping]:
    del config
    return [
        map_unchanged('wte.weight', 'token_embedding'),
        map_unchanged('wpe.weight', 'position_embedding'),
        *map_norm('ln_f', 'final_norm'),
    ]


def _list_layer_tensors(config: EncoderConfig) -> list[TensorMapping]:
    """Lists the tensors of a layer. Conv1D stores [in, out]; query, key and value are concatenated
    along out.
    """
    k = config.head_width
    parameters = ('attention.query', 'attention.key', 'attention.value')
    return [
        *map_norm('h.{i}.ln_1', 'attention_norm'),
        *map_norm('h.{i}.ln_2', 'feed_forward_norm'),
        TensorMapping(
            'h.{i}.attn.c_attn.weight',
            parameters,
            lambda array: [part.reshape(len(part), -1, k) for part in np.split(array, 3, axis=1)],
            lambda *parts: np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1),
        ),
        TensorMapping(
            'h.{i}.attn.c_attn.bias',
            tuple(f'{name}_bias' for name in parameters),
            lambda array: [part.reshape(-1, k) for part in np.split(array, 3)],
            lambda *parts: np.concatenate([part.reshape(-1) for part in parts]),
        ),
        TensorMapping(
            'h.{i}.attn.c_proj.weight',
            ('attention.out',),
            lambda array: (array.reshape(-1, k, array.shape[1]),),
            lambda array: array.reshape(-1, array.shape[-1]),
        ),
        map_unchanged('h.{i}.attn.c_proj.bias', 'attention.out_bias'),
        map_unchanged('h.{i}.mlp.c_fc.weight', 'feed_forward.up'),
        map_unchanged('h.{i}.mlp.c_fc.bias', 'feed_forward.up_bias'),
        map_unchanged('h.{i}.mlp.c_proj.weight', 'feed_forward.down'),
        map_unchanged('h.{i}.mlp.c_proj.bias', 'feed_forward.down_bias'),
    ]


_IGNORED_NAMES = ('lm_head.weight', 'h.{i}.attn.bias', 'h.{i}.attn.masked_bias')
GPT2 = Family(
    model_types={'gpt2': 'GPT2Model'},
    prefixes=('', 'transformer.'),
    shape=_read_config,
    outer=_list_outer_tensors,
    layer=_list_layer_tensors,
    ignored_names=_IGNORED_NAMES,
    tied=True,
    transposed=True,
)
