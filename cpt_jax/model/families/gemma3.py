"""Gemma 3's texts, and EmbeddingGemma: norms on both sides of each half, GeGLU, most layers
local.
"""

from typing import Any

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.family import (
    GATES,
    Config,
    Family,
    choose,
    layer_kinds,
    refuse_unless,
    ropes,
    usual_sizes,
)
from cpt_jax.model.families.tensors import Tensor, linear, out_of_heads, projections, same
from cpt_jax.runtime.errors import UserError


def _shape(config: Config) -> dict[str, Any]:
    # A tanh over scores, as in Gemma 2: Gemma 3 has neither.
    for key in ('attn_logit_softcapping', 'final_logit_softcapping'):
        refuse_unless(config, key, None)
    both_ways = bool(config.get('use_bidirectional_attention', False))
    causal = config.get('is_causal', True)
    period = config.get('sliding_window_pattern', 6)
    kinds = layer_kinds(config, lambda layer: (layer + 1) % period > 0)
    window = config.get('sliding_window', 4096)
    if any(kinds['local_layers']) and not window:
        raise UserError(
            f'config.json: sliding_window={window!r} is not supported where a layer of '
            f'layer_types has one'
        )
    return usual_sizes(config) | {
        'kv_heads': config.get('num_key_value_heads', 4),
        'head_width': config.get('head_dim', 256),
        'positions': 'rotary',
        'norm': 'rmsnorm',
        'norm_epsilon': config.get('rms_norm_eps', 1e-6),
        'norm_place': 'both',
        'norm_from_one': True,
        'activation': choose(config, 'hidden_activation', GATES, 'gelu_pytorch_tanh'),
        'bias': False,
        'qkv_bias': bool(config.get('attention_bias', False)),
        'out_bias': bool(config.get('attention_bias', False)),
        'query_key_norm': True,
        'attention_width': config.get('query_pre_attn_scalar', 256),
        'embedding_scale': True,
        'causal': causal and not both_ways,
        # EmbeddingGemma's window is of both sides together; where `is_causal` says so once more,
        # transformers (5.23) sees a token more.
        'window': window // 2 + (not causal) if both_ways else window,
        'pooling': 'mean' if both_ways else 'eos',
        **kinds,
        **ropes(
            config,
            config.get('rope_theta', 1_000_000.0),
            config.get('rope_local_base_freq', 10_000.0),
        ),
    }


def _outer(config: EncoderConfig) -> list[Tensor]:
    del config
    return [same('embed_tokens.weight', 'token_embedding'), same('norm.weight', 'final_norm.scale')]


def _layer(config: EncoderConfig) -> list[Tensor]:
    layer, k = 'layers.{i}', config.head_width
    out_bias = (
        [same(f'{layer}.self_attn.o_proj.bias', 'attention.out_bias')] if config.out_bias else []
    )
    return [
        same(f'{layer}.input_layernorm.weight', 'attention_norm.scale'),
        *projections(
            [f'{layer}.self_attn.{name}_proj' for name in 'qkv'], k, bool(config.qkv_bias)
        ),
        same(f'{layer}.self_attn.q_norm.weight', 'attention.query_norm.scale'),
        same(f'{layer}.self_attn.k_norm.weight', 'attention.key_norm.scale'),
        out_of_heads(f'{layer}.self_attn.o_proj.weight', 'attention.out', k),
        *out_bias,
        same(f'{layer}.post_attention_layernorm.weight', 'attended_norm.scale'),
        same(f'{layer}.pre_feedforward_layernorm.weight', 'feed_forward_norm.scale'),
        linear(f'{layer}.mlp.gate_proj.weight', 'feed_forward.gate'),
        linear(f'{layer}.mlp.up_proj.weight', 'feed_forward.up'),
        linear(f'{layer}.mlp.down_proj.weight', 'feed_forward.down'),
        same(f'{layer}.post_feedforward_layernorm.weight', 'fed_norm.scale'),
    ]


GEMMA3 = Family(
    {'gemma3_text': 'Gemma3TextModel'},
    ('', 'model.'),
    _shape,
    _outer,
    _layer,
    ('lm_head.weight',),
    tied=True,
)
