"""NomicBERT: BERT with rotary positions in place of a position table, SwiGLU and no biases."""

from typing import Any

from cpt_jax.model.families.family import Config, Family, read_token_types, refuse_unless
from cpt_jax.model.families.rotary_bert import (
    list_layer_tensors,
    list_outer_tensors,
    read_rotary_bert,
)
from cpt_jax.model.families.tensors import StoredTensor
from cpt_jax.runtime.errors import UserError

# Defaults of transformers' NomicBertConfig, which are the sizes of all published models.
_DEFAULTS = {
    'hidden_size': 768,
    'num_hidden_layers': 12,
    'num_attention_heads': 12,
    'intermediate_size': 3072,
    'hidden_act': 'silu',
    'layer_norm_eps': 1e-12,
    'type_vocab_size': 2,
    'max_position_embeddings': 2048,
}
# Keys of nomic-ai's own code, as in the published files -> keys of transformers, which ignores the
# former.
_OWN_KEYS = {
    'n_embd': 'hidden_size',
    'n_layer': 'num_hidden_layers',
    'n_head': 'num_attention_heads',
    'n_inner': 'intermediate_size',
    'layer_norm_epsilon': 'layer_norm_eps',
}
# Values of keys of nomic-ai's own code for the one architecture that transformers has.
_OWN_VALUES: dict[str, tuple[Any, ...]] = {
    'activation_function': ('swiglu',),
    'prenorm': (False,),
    'parallel_block': (False,),
    'causal': (False,),
    'use_rms_norm': (False, None),
    'qkv_proj_bias': (False,),
    'mlp_fc1_bias': (False,),
    'mlp_fc2_bias': (False,),
    'rotary_emb_fraction': (1.0,),
    'rotary_emb_interleaved': (False,),
    'rotary_emb_scale_base': (None,),
    'num_experts': (0, None),
    'moe_every_n_layers': (0, None),
}


def _read_config(config: Config) -> dict[str, Any]:
    given = _DEFAULTS | dict(config)
    for key, values in _OWN_VALUES.items():
        refuse_unless(config, key, *values)
    for own, key in _OWN_KEYS.items():
        if config.get(own) not in (None, given[key]):
            raise UserError(
                f'config.json: {own}={config[own]!r}, but transformers reads '
                f'{key}={given[key]!r}: set {key}'
            )
    # No table limits the length of texts. Published files have n_positions, and transformers, which
    # does not know this key, adds the other with its default.
    positions = max(given['max_position_embeddings'], config.get('n_positions', 0))
    given['max_position_embeddings'] = positions
    read_token_types(given)
    read = read_rotary_bert(given, default_theta=1000.0)
    refuse_unless(config, 'rotary_emb_base', read['rotary_base'])
    return read | {'bias': False}


def _find_default_limit(config: Config) -> int:
    """Returns the positions that transformers reads from config.json."""
    return config.get('max_position_embeddings', _DEFAULTS['max_position_embeddings'])


NOMIC_BERT = Family(
    model_types={'nomic_bert': 'NomicBertModel'},
    prefixes=('', 'nomic_bert.'),
    shape=_read_config,
    outer=list_outer_tensors,
    layer=list_layer_tensors,
    ignored_names=(
        'pooler.dense.weight',
        'pooler.dense.bias',
        'cls.predictions.bias',
        *(
            f'cls.predictions.{module}.{name}'
            for module in ('transform.dense', 'transform.layer_norm', 'decoder')
            for name in ('weight', 'bias')
        ),
    ),
    head='cls.predictions.decoder.weight',
    default_limit=_find_default_limit,
    # nomic-ai's own names, which transformers writes too.
    stored=(
        *(
            StoredTensor(f'emb_ln.{name}', (f'embeddings.LayerNorm.{name}',))
            for name in ('weight', 'bias')
        ),
        StoredTensor(
            'encoder.layers.{i}.attn.Wqkv.weight',
            tuple(f'layers.{{i}}.self_attn.{name}_proj.weight' for name in 'qkv'),
        ),
        *(
            StoredTensor(f'encoder.layers.{{i}}.{own}.{name}', (f'layers.{{i}}.{module}.{name}',))
            for own, module in (
                ('norm1', 'post_attention_layernorm'),
                ('norm2', 'post_mlp_layernorm'),
            )
            for name in ('weight', 'bias')
        ),
        *(
            StoredTensor(f'encoder.layers.{{i}}.{own}.weight', (f'layers.{{i}}.{module}.weight',))
            for own, module in (
                ('attn.out_proj', 'self_attn.o_proj'),
                ('mlp.fc11', 'mlp.up_proj'),
                ('mlp.fc12', 'mlp.gate_proj'),
                ('mlp.fc2', 'mlp.down_proj'),
            )
        ),
    ),
)
