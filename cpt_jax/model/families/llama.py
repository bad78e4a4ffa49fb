"""LLaMA, Mistral, Qwen2 and Qwen3: RMSNorm, rotary positions, SwiGLU."""

from typing import Any

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.family import (
    Config,
    Family,
    read_layer_types,
    read_rope,
    read_usual_sizes,
    refuse_unless,
)
from cpt_jax.model.families.tensors import (
    TensorMapping,
    map_linear,
    map_out_of_heads,
    map_projections,
    map_unchanged,
)


def _read_config(config: Config) -> dict[str, Any]:
    refuse_unless(config, 'hidden_act', 'silu')
    refuse_unless(config, 'mlp_bias', False)
    kind = config['model_type']
    width = config['hidden_size']
    heads = config['num_attention_heads']
    # In LLaMA and Qwen3, attention_bias applies to query, key, value and output projections. Qwen2
    # always has biases of the first three.
    has_bias = bool(config.get('attention_bias', False))
    return read_usual_sizes(config) | {
        'kv_heads': config.get('num_key_value_heads') or heads,
        'head_width': config.get('head_dim') or width // heads,
        'positions': 'rotary',
        'norm': 'rmsnorm',
        'norm_epsilon': config.get('rms_norm_eps', 1e-6),
        'activation': 'swiglu',
        'bias': False,
        'qkv_bias': kind == 'qwen2' or has_bias,
        'out_bias': kind != 'qwen2' and has_bias,
        'query_key_norm': kind == 'qwen3',
        **read_rope(config),
        **_read_window(config),
    }


def _read_window(config: Config) -> dict[str, Any]:
    """Returns the maximum length, and the layers with a sliding window if texts can be longer than
    it.

    Bidirectional models differ in what the window of a token includes: their texts are limited to
    the window, within which it has no effect.
    """
    longest = config['max_position_embeddings']
    uses_window = config.get('use_sliding_window', config['model_type'] == 'mistral')
    window = config.get('sliding_window') if uses_window else None
    if not window or window >= longest:
        return {'max_length': longest}
    if config.get('is_causal') is False or config.get('use_bidirectional_attention'):
        return {'max_length': window}
    # Qwen's first layers have no window; those of Mistral all have one.
    full_layers = config.get('max_window_layers', 28) if 'qwen' in config['model_type'] else 0
    kinds = read_layer_types(config, lambda layer: layer >= full_layers)
    if not any(kinds['local_layers']):
        return {'max_length': longest}
    rope = read_rope(config)
    return {
        'max_length': longest,
        **kinds,
        'window': window,
        'local_rotary_base': rope['rotary_base'],
        'local_rotary_scaling': rope['rotary_scaling'],
    }


def _list_outer_tensors(config: EncoderConfig) -> list[TensorMapping]:
    del config
    return [
        map_unchanged('embed_tokens.weight', 'token_embedding'),
        map_unchanged('norm.weight', 'final_norm.scale'),
    ]


def _list_layer_tensors(config: EncoderConfig) -> list[TensorMapping]:
    k = config.head_width
    attention = 'layers.{i}.self_attn'
    out_bias = (
        [map_unchanged(f'{attention}.o_proj.bias', 'attention.out_bias')] if config.out_bias else []
    )
    norms = ['q_norm', 'k_norm'] if config.query_key_norm else []
    return [
        map_unchanged('layers.{i}.input_layernorm.weight', 'attention_norm.scale'),
        map_unchanged('layers.{i}.post_attention_layernorm.weight', 'feed_forward_norm.scale'),
        *map_projections([f'{attention}.{name}_proj' for name in 'qkv'], k, bool(config.qkv_bias)),
        map_out_of_heads(f'{attention}.o_proj.weight', 'attention.out', k),
        *out_bias,
        *(
            map_unchanged(
                f'{attention}.{name}.weight',
                f'attention.{"query" if name[0] == "q" else "key"}_norm.scale',
            )
            for name in norms
        ),
        map_linear('layers.{i}.mlp.gate_proj.weight', 'feed_forward.gate'),
        map_linear('layers.{i}.mlp.up_proj.weight', 'feed_forward.up'),
        map_linear('layers.{i}.mlp.down_proj.weight', 'feed_forward.down'),
    ]


LLAMA = Family(
    model_types={
        'llama': 'LlamaModel',
        'mistral': 'MistralModel',
        'qwen2': 'Qwen2Model',
        'qwen3': 'Qwen3Model',
    },
    prefixes=('', 'model.', 'transformer.'),  # the last one in LlamaForQuestionAnswering
    shape=_read_config,
    outer=_list_outer_tensors,
    layer=_list_layer_tensors,
    ignored_names=('lm_head.weight', 'layers.{i}.self_attn.rotary_emb.inv_freq'),
)
