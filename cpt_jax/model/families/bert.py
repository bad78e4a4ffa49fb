"""BERT, MiniLM, E5, BGE, and RoBERTa: bidirectional; a norm after attention and after the
feed-forward part.
"""

from typing import Any

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.family import (
    GELUS,
    Config,
    Family,
    read_token_types,
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
from cpt_jax.runtime.errors import UserError


def _read_config(config: Config) -> dict[str, Any]:
    refuse_unless(config, 'position_embedding_type', 'absolute')
    refuse_unless(config, 'is_decoder', False)
    return read_usual_sizes(config) | {
        'norm_epsilon': config.get('layer_norm_eps', 1e-12),
        'norm_place': 'after',
        'activation': translate_config_value(config, 'hidden_act', GELUS, 'gelu'),
        'causal': False,
        'final_norm': False,
        'embedding_norm': True,
        'token_types': read_token_types(config),
        'pooling': 'mean',
    }


def _count_roberta_padding_rows(config: Config) -> int:
    """Returns the number of rows of RoBERTa's position table up to that of its padding token."""
    padding_id = config.get('pad_token_id', 1)
    if not isinstance(padding_id, int):
        raise UserError(
            f'config.json: pad_token_id={padding_id!r} is not supported; positions are counted '
            f'from the row after it'
        )
    return padding_id + 1


def _read_roberta_config(config: Config) -> dict[str, Any]:
    padding_rows = _count_roberta_padding_rows(config)
    shape = _read_config(config)
    return shape | {
        'max_length': shape['max_length'] - padding_rows,
        'position_offset': padding_rows,
        'padding_id': padding_rows - 1,
    }


def _list_outer_tensors(config: EncoderConfig) -> list[TensorMapping]:
    del config
    return [
        map_unchanged('embeddings.word_embeddings.weight', 'token_embedding'),
        map_unchanged('embeddings.position_embeddings.weight', 'position_embedding'),
        map_unchanged('embeddings.token_type_embeddings.weight', 'type_embedding'),
        *map_norm('embeddings.LayerNorm', 'embedding_norm'),
    ]


def _list_layer_tensors(config: EncoderConfig) -> list[TensorMapping]:
    layer = 'encoder.layer.{i}'
    return [
        *map_projections(
            [f'{layer}.attention.self.{name}' for name in ('query', 'key', 'value')],
            config.head_width,
            bias=True,
        ),
        map_out_of_heads(
            f'{layer}.attention.output.dense.weight', 'attention.out', config.head_width
        ),
        map_unchanged(f'{layer}.attention.output.dense.bias', 'attention.out_bias'),
        *map_norm(f'{layer}.attention.output.LayerNorm', 'attention_norm'),
        *map_linear_with_bias(f'{layer}.intermediate.dense', 'feed_forward.up'),
        *map_linear_with_bias(f'{layer}.output.dense', 'feed_forward.down'),
        *map_norm(f'{layer}.output.LayerNorm', 'feed_forward_norm'),
    ]


_PREDICTIONS = (
    'bias',
    'transform.dense.weight',
    'transform.dense.bias',
    'transform.LayerNorm.weight',
    'transform.LayerNorm.bias',
)
BERT = Family(
    model_types={'bert': 'BertModel'},
    prefixes=('', 'bert.'),
    shape=_read_config,
    outer=_list_outer_tensors,
    layer=_list_layer_tensors,
    ignored_names=(
        'embeddings.position_ids',
        'pooler.dense.weight',
        'pooler.dense.bias',
        *(f'cls.predictions.{name}' for name in (*_PREDICTIONS, 'decoder.weight', 'decoder.bias')),
        'cls.seq_relationship.weight',
        'cls.seq_relationship.bias',
    ),
    head='cls.predictions.decoder.weight',
)
ROBERTA = Family(
    model_types={'roberta': 'RobertaModel', 'xlm-roberta': 'XLMRobertaModel'},
    prefixes=('', 'roberta.'),
    shape=_read_roberta_config,
    outer=_list_outer_tensors,
    layer=_list_layer_tensors,
    ignored_names=(
        'embeddings.position_ids',
        'pooler.dense.weight',
        'pooler.dense.bias',
        *(
            f'lm_head.{name}'
            for name in (
                'bias',
                'dense.weight',
                'dense.bias',
                'layer_norm.weight',
                'layer_norm.bias',
                'decoder.weight',
                'decoder.bias',
            )
        ),
    ),
    head='lm_head.decoder.weight',
    count_reserved_positions=_count_roberta_padding_rows,
)
