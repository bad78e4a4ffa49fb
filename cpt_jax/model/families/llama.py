"""LLaMA, Mistral, Qwen2 and Qwen3: RMSNorm, rotary positions, SwiGLU."""

from typing import Any

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.family import Config, Family, refuse_unless, rope, usual_sizes
from cpt_jax.model.families.tensors import Tensor, linear, out_of_heads, projections, same


def _shape(config: Config) -> dict[str, Any]:
    refuse_unless(config, 'hidden_act', 'silu')
    refuse_unless(config, 'mlp_bias', False)
    kind, width, heads = config['model_type'], config['hidden_size'], config['num_attention_heads']
    # LLaMA and Qwen3: of all four; Qwen2 always has the first three.
    biased = bool(config.get('attention_bias', False))
    return usual_sizes(config) | {
        'kv_heads': config.get('num_key_value_heads') or heads,
        'head_width': config.get('head_dim') or width // heads,
        'max_length': _max_length(config),
        'positions': 'rotary',
        'norm': 'rmsnorm',
        'norm_epsilon': config.get('rms_norm_eps', 1e-6),
        'activation': 'swiglu',
        'bias': False,
        'qkv_bias': kind == 'qwen2' or biased,
        'out_bias': kind != 'qwen2' and biased,
        'query_key_norm': kind == 'qwen3',
        **rope(config),
    }


def _max_length(config: Config) -> int:
    """Within its sliding window a token sees all before it, so texts up to the window need none."""
    longest = config['max_position_embeddings']
    windowed = config.get('use_sliding_window', config['model_type'] == 'mistral') and config.get(
        'sliding_window'
    )
    return min(longest, config['sliding_window']) if windowed else longest


def _outer(config: EncoderConfig) -> list[Tensor]:
    del config
    return [same('embed_tokens.weight', 'token_embedding'), same('norm.weight', 'final_norm.scale')]


def _layer(config: EncoderConfig) -> list[Tensor]:
    k = config.head_width
    attention = 'layers.{i}.self_attn'
    out_bias = [same(f'{attention}.o_proj.bias', 'attention.out_bias')] if config.out_bias else []
    norms = ['q_norm', 'k_norm'] if config.query_key_norm else []
    return [
        same('layers.{i}.input_layernorm.weight', 'attention_norm.scale'),
        same('layers.{i}.post_attention_layernorm.weight', 'feed_forward_norm.scale'),
        *projections([f'{attention}.{name}_proj' for name in 'qkv'], k, bool(config.qkv_bias)),
        out_of_heads(f'{attention}.o_proj.weight', 'attention.out', k),
        *out_bias,
        *(
            same(
                f'{attention}.{name}.weight',
                f'attention.{"query" if name[0] == "q" else "key"}_norm.scale',
            )
            for name in norms
        ),
        linear('layers.{i}.mlp.gate_proj.weight', 'feed_forward.gate'),
        linear('layers.{i}.mlp.up_proj.weight', 'feed_forward.up'),
        linear('layers.{i}.mlp.down_proj.weight', 'feed_forward.down'),
    ]


LLAMA = Family(
    {
        'llama': 'LlamaModel',
        'mistral': 'MistralModel',
        'qwen2': 'Qwen2Model',
        'qwen3': 'Qwen3Model',
    },
    ('', 'model.'),
    _shape,
    _outer,
    _layer,
    ('lm_head.weight', 'layers.{i}.self_attn.rotary_emb.inv_freq'),
)
