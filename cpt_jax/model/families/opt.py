"""OPT: GPT with ReLU; its position table begins with two rows that no text uses. 350m has its norms
after each half.
"""

from typing import Any

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.family import GELUS, Config, Family, choose, refuse_unless
from cpt_jax.model.families.tensors import (
    Tensor,
    affine,
    linear,
    linear_with_bias,
    out_of_heads,
    projections,
    same,
)


def _shape(config: Config) -> dict[str, Any]:
    refuse_unless(config, 'enable_bias', True)
    refuse_unless(config, 'layer_norm_elementwise_affine', True)
    before = config.get('do_layer_norm_before', True)
    return {
        'width': config['hidden_size'],
        'layers': config['num_hidden_layers'],
        'heads': config['num_attention_heads'],
        'hidden': config['ffn_dim'],
        'max_length': config['max_position_embeddings'],
        'position_offset': 2,
        'norm_place': 'before' if before else 'after',
        'activation': choose(config, 'activation_function', GELUS, 'relu'),
        'final_norm': before and not config.get('_remove_final_layer_norm', False),
        'embedding_width': config.get('word_embed_proj_dim') or config['hidden_size'],
    }


def _outer(config: EncoderConfig) -> list[Tensor]:
    narrow = [
        linear('decoder.project_in.weight', 'project_in'),
        linear('decoder.project_out.weight', 'project_out'),
    ]
    return [
        same('decoder.embed_tokens.weight', 'token_embedding'),
        same('decoder.embed_positions.weight', 'position_embedding'),
        *(affine('decoder.final_layer_norm', 'final_norm') if config.final_norm else []),
        *(narrow if config.embedding_width != config.width else []),
    ]


def _layer(config: EncoderConfig) -> list[Tensor]:
    layer = 'decoder.layers.{i}'
    return [
        *affine(f'{layer}.self_attn_layer_norm', 'attention_norm'),
        *affine(f'{layer}.final_layer_norm', 'feed_forward_norm'),
        *projections(
            [f'{layer}.self_attn.{name}_proj' for name in 'qkv'], config.head_width, bias=True
        ),
        out_of_heads(f'{layer}.self_attn.out_proj.weight', 'attention.out', config.head_width),
        same(f'{layer}.self_attn.out_proj.bias', 'attention.out_bias'),
        *linear_with_bias(f'{layer}.fc1', 'feed_forward.up'),
        *linear_with_bias(f'{layer}.fc2', 'feed_forward.down'),
    ]


OPT = Family(
    {'opt': 'OPTModel'}, ('', 'model.'), _shape, _outer, _layer, ('lm_head.weight',), tied=True
)
