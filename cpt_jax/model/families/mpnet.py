"""MPNet: BERT with a relative position bias and without token types, with other names."""

from typing import Any

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.family import (
    GELUS,
    Config,
    Family,
    read_usual_sizes,
    refuse_unless,
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

# transformers counts positions from the row after this one, whatever pad_token_id is.
_PADDING_ID = 1
_BUCKETS = 32


def _count_padding_rows(config: Config) -> int:
    del config
    return _PADDING_ID + 1


def _read_config(config: Config) -> dict[str, Any]:
    # transformers assigns buckets as if there were 32.
    refuse_unless(config, 'relative_attention_num_buckets', _BUCKETS)
    shape = read_usual_sizes(config)
    return shape | {
        'max_length': shape['max_length'] - _count_padding_rows(config),
        'position_offset': _count_padding_rows(config),
        'padding_id': _PADDING_ID,
        'relative_buckets': _BUCKETS,
        'norm_epsilon': config.get('layer_norm_eps', 1e-12),
        'norm_place': 'after',
        'activation': translate_config_value(config, 'hidden_act', GELUS, 'gelu'),
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
        map_unchanged('encoder.relative_attention_bias.weight', 'relative_bias'),
        *map_norm('embeddings.LayerNorm', 'embedding_norm'),
    ]


def _list_layer_tensors(config: EncoderConfig) -> list[TensorMapping]:
    layer = 'encoder.layer.{i}'
    return [
        *map_projections(
            [f'{layer}.attention.attn.{name}' for name in 'qkv'], config.head_width, bias=True
        ),
        map_out_of_heads(f'{layer}.attention.attn.o.weight', 'attention.out', config.head_width),
        map_unchanged(f'{layer}.attention.attn.o.bias', 'attention.out_bias'),
        *map_norm(f'{layer}.attention.LayerNorm', 'attention_norm'),
        *map_linear_with_bias(f'{layer}.intermediate.dense', 'feed_forward.up'),
        *map_linear_with_bias(f'{layer}.output.dense', 'feed_forward.down'),
        *map_norm(f'{layer}.output.LayerNorm', 'feed_forward_norm'),
    ]


_HEAD = ('bias', 'dense.weight', 'dense.bias', 'layer_norm.weight', 'layer_norm.bias')
MPNET = Family(
    model_types={'mpnet': 'MPNetModel'},
    prefixes=('', 'mpnet.'),
    shape=_read_config,
    outer=_list_outer_tensors,
    layer=_list_layer_tensors,
    ignored_names=(
        'embeddings.position_ids',
        'pooler.dense.weight',
        'pooler.dense.bias',
        *(f'lm_head.{name}' for name in (*_HEAD, 'decoder.weight', 'decoder.bias')),
    ),
    head='lm_head.decoder.weight',
    count_reserved_positions=_count_padding_rows,
)
