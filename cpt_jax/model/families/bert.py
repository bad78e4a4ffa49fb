"""BERT, MiniLM, E5, BGE: every token sees its whole text; norms stand after each half."""

from typing import Any

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.family import GELUS, Config, Family, choose, refuse_unless, usual_sizes
from cpt_jax.model.families.tensors import (
    Tensor,
    affine,
    linear_with_bias,
    out_of_heads,
    projections,
    same,
)


def _shape(config: Config) -> dict[str, Any]:
    refuse_unless(config, 'position_embedding_type', 'absolute')
    refuse_unless(config, 'is_decoder', False)
    return usual_sizes(config) | {
        'norm_epsilon': config.get('layer_norm_eps', 1e-12),
        'norm_place': 'after',
        'activation': choose(config, 'hidden_act', GELUS, 'gelu'),
        'causal': False,
        'final_norm': False,
        'embedding_norm': True,
        'token_types': config.get('type_vocab_size', 2),
        'pooling': 'mean',
    }


def _outer(config: EncoderConfig) -> list[Tensor]:
    del config
    return [
        same('embeddings.word_embeddings.weight', 'token_embedding'),
        same('embeddings.position_embeddings.weight', 'position_embedding'),
        same('embeddings.token_type_embeddings.weight', 'type_embedding'),
        *affine('embeddings.LayerNorm', 'embedding_norm'),
    ]


def _layer(config: EncoderConfig) -> list[Tensor]:
    layer = 'encoder.layer.{i}'
    return [
        *projections(
            [f'{layer}.attention.self.{name}' for name in ('query', 'key', 'value')],
            config.head_width,
            bias=True,
        ),
        out_of_heads(f'{layer}.attention.output.dense.weight', 'attention.out', config.head_width),
        same(f'{layer}.attention.output.dense.bias', 'attention.out_bias'),
        *affine(f'{layer}.attention.output.LayerNorm', 'attention_norm'),
        *linear_with_bias(f'{layer}.intermediate.dense', 'feed_forward.up'),
        *linear_with_bias(f'{layer}.output.dense', 'feed_forward.down'),
        *affine(f'{layer}.output.LayerNorm', 'feed_forward_norm'),
    ]


_PREDICTIONS = (
    'bias',
    'transform.dense.weight',
    'transform.dense.bias',
    'transform.LayerNorm.weight',
    'transform.LayerNorm.bias',
)
BERT = Family(
    {'bert': 'BertModel'},
    ('', 'bert.'),
    _shape,
    _outer,
    _layer,
    (
        'embeddings.position_ids',
        'pooler.dense.weight',
        'pooler.dense.bias',
        *(f'cls.predictions.{name}' for name in (*_PREDICTIONS, 'decoder.weight', 'decoder.bias')),
        'cls.seq_relationship.weight',
        'cls.seq_relationship.bias',
    ),
)
