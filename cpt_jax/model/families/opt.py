"""OPT: GPT with ReLU. The first two rows of its position table are unused. OPT 350m has its norms
after attention and after the feed-forward part.
"""

from typing import Any

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.family import (
    GELUS,
    Config,
    Family,
    refuse_unless,
    translate_config_value,
)
from cpt_jax.model.families.tensors import (
    TensorMapping,
    map_linear,
    map_linear_with_bias,
    map_norm,
    map_out_of_heads,
    map_projections,
    map_unchanged,
)


def _read_config(config: Config) -> dict[str, Any]:
    refuse_unless(config, 'enable_bias', True)
    refuse_unless(config, 'layer_norm_elementwise_affine', True)
    norm_before = config.get('do_layer_norm_before', True)
    return {
        'width': config['hidden_size'],
        'layers': config['num_hidden_layers'],
        'heads': config['num_attention_heads'],
        'hidden': config['ffn_dim'],
        'max_length': config['max_position_embeddings'],
        'position_offset': 2,
        'norm_place': 'before' if norm_before else 'after',
        'activation': translate_config_value(config, 'activation_function', GELUS, 'relu'),
        'final_norm': norm_before and not config.get('_remove_final_layer_norm', False),
        'embedding_width': config.get('word_embed_proj_dim') or config['hidden_size'],
    }


def _list_outer_tensors(config: EncoderConfig) -> list[TensorMapping]:
    narrow = [
        map_linear('decoder.project_in.weight', 'project_in'),
        map_linear('decoder.project_out.weight', 'project_out'),
    ]
    return [
        map_unchanged('decoder.embed_tokens.weight', 'token_embedding'),
        map_unchanged('decoder.embed_positions.weight', 'position_embedding'),
        *(map_norm('decoder.final_layer_norm', 'final_norm') if config.final_norm else []),
        *(narrow if config.embedding_width != config.width else []),
    ]


def _list_layer_tensors(config: EncoderConfig) -> list[TensorMapping]:
    layer = 'decoder.layers.{i}'
    return [
        *map_norm(f'{layer}.self_attn_layer_norm', 'attention_norm'),
        *map_norm(f'{layer}.final_layer_norm', 'feed_forward_norm'),
        *map_projections(
            [f'{layer}.self_attn.{name}_proj' for name in 'qkv'], config.head_width, bias=True
        ),
        map_out_of_heads(f'{layer}.self_attn.out_proj.weight', 'attention.out', config.head_width),
        map_unchanged(f'{layer}.self_attn.out_proj.bias', 'attention.out_bias'),
        *map_linear_with_bias(f'{layer}.fc1', 'feed_forward.up'),
        *map_linear_with_bias(f'{layer}.fc2', 'feed_forward.down'),
    ]


OPT = Family(
    model_types={'opt': 'OPTModel'},
    prefixes=('', 'model.'),
    shape=_read_config,
    outer=_list_outer_tensors,
    layer=_list_layer_tensors,
    ignored_names=('lm_head.weight',),
    tied=True,
)
