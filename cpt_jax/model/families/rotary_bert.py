"""What NomicBERT and GTE have in common: BERT's norms, rotary positions and a gated feed-forward
part, with the names of transformers' modules.
"""

from typing import Any

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.family import (
    GATES,
    Config,
    read_rope,
    read_usual_sizes,
    translate_config_value,
)
from cpt_jax.model.families.tensors import (
    TensorMapping,
    map_linear,
    map_norm,
    map_out_of_heads,
    map_projections,
    map_unchanged,
)


def read_rotary_bert(config: Config, default_theta: float) -> dict[str, Any]:
    """Returns arguments of EncoderConfig, without those for biases.

    Args:
      config: content of config.json, with the family's defaults.
      default_theta: base of the rotary positions if config.json has none.
    """
    default_head_width = config['hidden_size'] // config['num_attention_heads']
    return read_usual_sizes(config) | {
        'head_width': config.get('head_dim') or default_head_width,
        'positions': 'rotary',
        'norm_epsilon': config['layer_norm_eps'],
        'norm_place': 'after',
        'activation': translate_config_value(config, 'hidden_act', GATES),
        'causal': False,
        'final_norm': False,
        'embedding_norm': True,
        'token_types': config['type_vocab_size'],
        'pooling': 'mean',
        **read_rope(config, default_theta),
    }


def list_outer_tensors(config: EncoderConfig) -> list[TensorMapping]:
    """Lists the tensors outside of the layers."""
    name = 'embeddings.token_type_embeddings.weight'
    types = [map_unchanged(name, 'type_embedding')] if config.token_types else []
    return [
        map_unchanged('embeddings.word_embeddings.weight', 'token_embedding'),
        *types,
        *map_norm('embeddings.LayerNorm', 'embedding_norm'),
    ]


def list_layer_tensors(config: EncoderConfig) -> list[TensorMapping]:
    """Lists the tensors of a layer."""
    layer = 'layers.{i}'
    biases = []
    if config.out_bias:
        biases.append(map_unchanged(f'{layer}.self_attn.o_proj.bias', 'attention.out_bias'))
    if config.down_bias:
        biases.append(map_unchanged(f'{layer}.mlp.down_proj.bias', 'feed_forward.down_bias'))
    return [
        *map_projections(
            [f'{layer}.self_attn.{name}_proj' for name in 'qkv'],
            config.head_width,
            bool(config.qkv_bias),
        ),
        map_out_of_heads(f'{layer}.self_attn.o_proj.weight', 'attention.out', config.head_width),
        *map_norm(f'{layer}.post_attention_layernorm', 'attention_norm'),
        map_linear(f'{layer}.mlp.gate_proj.weight', 'feed_forward.gate'),
        map_linear(f'{layer}.mlp.up_proj.weight', 'feed_forward.up'),
        map_linear(f'{layer}.mlp.down_proj.weight', 'feed_forward.down'),
        *map_norm(f'{layer}.post_mlp_layernorm', 'feed_forward_norm'),
        *biases,
    ]
