"""Gemma 3 (text only) and EmbeddingGemma: GeGLU; norms before and after attention, and before and
after the feed-forward part; most layers are local.
"""

from typing import Any

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
    map_out_of_heads,
    map_projections,
    map_unchanged,
)
from cpt_jax.runtime.errors import UserError


def _read_config(config: Config) -> dict[str, Any]:
    # A tanh over logits, as in Gemma 2. Gemma 3 models do not use it.
    for key in ('attn_logit_softcapping', 'final_logit_softcapping'):
        refuse_unless(config, key, None)
    is_bidirectional = bool(config.get('use_bidirectional_attention', False))
    causal = config.get('is_causal', True)
    period = config.get('sliding_window_pattern', 6)
    kinds = read_layer_types(config, lambda layer: (layer + 1) % period > 0)
    window = config.get('sliding_window', 4096)
    if any(kinds['local_layers']) and not window:
        raise UserError(
            f'config.json: sliding_window={window!r} is not supported if layer_types has a '
            f'sliding_attention layer'
        )
    return read_usual_sizes(config) | {
        'kv_heads': config.get('num_key_value_heads', 4),
        'head_width': config.get('head_dim', 256),
        'positions': 'rotary',
        'norm': 'rmsnorm',
        'norm_epsilon': config.get('rms_norm_eps', 1e-6),
        'norm_place': 'both',
        'norm_from_one': True,
        'activation': translate_config_value(
            config, 'hidden_activation', GATES, 'gelu_pytorch_tanh'
        ),
        'bias': False,
        'qkv_bias': bool(config.get('attention_bias', False)),
        'out_bias': bool(config.get('attention_bias', False)),
        'query_key_norm': True,
        'attention_width': config.get('query_pre_attn_scalar', 256),
        'embedding_scale': True,
        'causal': causal and not is_bidirectional,
        # EmbeddingGemma's window covers both sides together. If `is_causal` is false as well,
        # transformers 5.23 attends to one more token on each side.
        'window': window // 2 + (not causal) if is_bidirectional else window,
        'pooling': 'mean' if is_bidirectional else 'eos',
        **kinds,
        **read_ropes(
            config,
            config.get('rope_theta', 1_000_000.0),
            config.get('rope_local_base_freq', 10_000.0),
        ),
    }


def _list_outer_tensors(config: EncoderConfig) -> list[TensorMapping]:
    del config
    return [
        map_unchanged('embed_tokens.weight', 'token_embedding'),
        map_unchanged('norm.weight', 'final_norm.scale'),
    ]


def _list_layer_tensors(config: EncoderConfig) -> list[TensorMapping]:
    layer, k = 'layers.{i}', config.head_width
    out_bias = (
        [map_unchanged(f'{layer}.self_attn.o_proj.bias', 'attention.out_bias')]
        if config.out_bias
        else []
    )
    return [
        map_unchanged(f'{layer}.input_layernorm.weight', 'attention_norm.scale'),
        *map_projections(
            [f'{layer}.self_attn.{name}_proj' for name in 'qkv'], k, bool(config.qkv_bias)
        ),
        map_unchanged(f'{layer}.self_attn.q_norm.weight', 'attention.query_norm.scale'),
        map_unchanged(f'{layer}.self_attn.k_norm.weight', 'attention.key_norm.scale'),
        map_out_of_heads(f'{layer}.self_attn.o_proj.weight', 'attention.out', k),
        *out_bias,
        map_unchanged(f'{layer}.post_attention_layernorm.weight', 'attended_norm.scale'),
        map_unchanged(f'{layer}.pre_feedforward_layernorm.weight', 'feed_forward_norm.scale'),
        map_linear(f'{layer}.mlp.gate_proj.weight', 'feed_forward.gate'),
        map_linear(f'{layer}.mlp.up_proj.weight', 'feed_forward.up'),
        map_linear(f'{layer}.mlp.down_proj.weight', 'feed_forward.down'),
        map_unchanged(f'{layer}.post_feedforward_layernorm.weight', 'fed_norm.scale'),
    ]


GEMMA3 = Family(
    model_types={'gemma3_text': 'Gemma3TextModel'},
    prefixes=('', 'model.'),
    shape=_read_config,
    outer=_list_outer_tensors,
    layer=_list_layer_tensors,
    ignored_names=('lm_head.weight',),
    tied=True,
)
