"""DistilBERT: BERT without token types, with other names."""

from typing import Any

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.family import (
    GELUS,
    Config,
    Family,
    translate_config_value,
)
from cpt_jax.model.families.tensors import (
    TensorMapping,
    map_linear_with_bias,
    map_norm,
    map_out_of_heads,
    map_projections,
    map_unchanged,
)


def _read_config(config: Config) -> dict[str, Any]:
    return {
        'width': config['dim'],
        'layers': config['n_layers'],
        'heads': config['n_heads'],
        'hidden': config['hidden_dim'],
        'max_length': config['max_position_embeddings'],
        'norm_epsilon': 1e-12,
        'norm_place': 'after',
        'activation': translate_config_value(config, 'activation', GELUS, 'gelu'),
        'causal': False,
        'final_norm': False,
        'embedding_norm': True,
        'pooling': 'mean',
    }


def _list_outer_tensors(config: EncoderConfig) -> list[TensorMapping]:
    del config
    return [
        map_unchanged('embeddings.word_embeddings.weight', 'token_embedding'),
        map_unchanged('embeddings.position_embeddings.weight', 'position_embedding'),
        *map_norm('embeddings.LayerNorm', 'embedding_norm'),
    ]


def _list_layer_tensors(config: EncoderConfig) -> list[TensorMapping]:
    layer = 'transformer.layer.{i}'
    return [
        *map_projections(
            [f'{layer}.attention.{name}_lin' for name in 'qkv'], config.head_width, bias=True
        ),
        map_out_of_heads(f'{layer}.attention.out_lin.weight', 'attention.out', config.head_width),
        map_unchanged(f'{layer}.attention.out_lin.bias', 'attention.out_bias'),
        *map_norm(f'{layer}.sa_layer_norm', 'attention_norm'),
        *map_linear_with_bias(f'{layer}.ffn.lin1', 'feed_forward.up'),
        *map_linear_with_bias(f'{layer}.ffn.lin2', 'feed_forward.down'),
        *map_norm(f'{layer}.output_layer_norm', 'feed_forward_norm'),
    ]


DISTILBERT = Family(
    model_types={'distilbert': 'DistilBertModel'},
    prefixes=('', 'distilbert.'),
    shape=_read_config,
    outer=_list_outer_tensors,
    layer=_list_layer_tensors,
    ignored_names=tuple(
        f'{part}.{name}'
        for part in ('vocab_transform', 'vocab_layer_norm', 'vocab_projector')
        for name in ('weight', 'bias')
    ),
    head='vocab_projector.weight',
)
