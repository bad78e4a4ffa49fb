"""GTE (gte-multilingual-base, gte-large-en-v1.5): BERT with rotary positions in place of a position
table, and a gated feed-forward part of which only the last matrix has a bias.
"""

from typing import Any

from cpt_jax.model.families.family import Config, Family, refuse_unless
from cpt_jax.model.families.rotary_bert import (
    list_layer_tensors,
    list_outer_tensors,
    read_rotary_bert,
)
from cpt_jax.model.families.tensors import StoredTensor


def _read_config(config: Config) -> dict[str, Any]:
    # Keys of Alibaba's own code, which transformers ignores.
    refuse_unless(config, 'layer_norm_type', 'layer_norm')
    refuse_unless(config, 'position_embedding_type', 'rope')
    refuse_unless(config, 'logn_attention_scale', False)
    defaults = {'hidden_act': 'gelu', 'layer_norm_eps': 1e-12, 'type_vocab_size': 1}
    read = read_rotary_bert(defaults | dict(config), default_theta=160_000.0)
    return read | {'bias': False, 'qkv_bias': True, 'out_bias': True, 'down_bias': True}


_HEAD_MODULES = ('lm_head.dense', 'lm_head.norm', 'lm_head.layer_norm', 'lm_head.decoder')
GTE = Family(
    model_types={'gte': 'GteModel'},
    # 'new.' in the published files, whose own class is called New.
    prefixes=('', 'new.', 'gte.'),
    shape=_read_config,
    outer=list_outer_tensors,
    layer=list_layer_tensors,
    ignored_names=tuple(
        f'{module}.{name}'
        for module in ('pooler.dense', *_HEAD_MODULES)
        for name in ('weight', 'bias')
    ),
    head='lm_head.decoder.weight',
    # Alibaba's own names, which transformers writes too.
    stored=(
        *(
            StoredTensor(
                f'encoder.layer.{{i}}.attention.qkv_proj.{name}',
                tuple(f'layers.{{i}}.self_attn.{letter}_proj.{name}' for letter in 'qkv'),
            )
            for name in ('weight', 'bias')
        ),
        StoredTensor(
            'encoder.layer.{i}.mlp.up_gate_proj.weight',
            tuple(f'layers.{{i}}.mlp.{name}_proj.weight' for name in ('up', 'gate')),
        ),
        *(
            StoredTensor(f'encoder.layer.{{i}}.{own}.{name}', (f'layers.{{i}}.{module}.{name}',))
            for own, module in (
                ('attention.o_proj', 'self_attn.o_proj'),
                ('attn_ln', 'post_attention_layernorm'),
                ('mlp.down_proj', 'mlp.down_proj'),
                ('mlp_ln', 'post_mlp_layernorm'),
            )
            for name in ('weight', 'bias')
        ),
    ),
)
