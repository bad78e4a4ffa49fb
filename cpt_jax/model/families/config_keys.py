"""The values that config.json of a pretrained model may have, by key.

They are checked before anything is computed or allocated from them.
"""

from cpt_jax.storage.json_checks import (
    FLAG,
    OBJECT,
    TEXT,
    Allowed,
    allow_integers,
    allow_list,
    allow_null,
    allow_numbers,
)

_SIZE = allow_integers(1, 10_000_000)
_NUMBER_OF_LAYERS = allow_integers(1, 10_000)
_EPSILON = allow_numbers(least=0, most=1)
_BASE = allow_numbers(least=1, most=1e12)
_FACTOR = allow_numbers(least=0, most=1e6)
_ID = allow_integers(-1, 10_000_000)  # -1: no such token
_IDS = allow_list(_ID)

CONFIG_KEYS: dict[str, Allowed] = {
    'model_type': TEXT,
    'tokenizer_class': allow_null(TEXT),
    **dict.fromkeys(('num_hidden_layers', 'n_layer'), _NUMBER_OF_LAYERS),
    **dict.fromkeys(
        (
            'vocab_size',
            'hidden_size',
            'num_attention_heads',
            'intermediate_size',
            'max_position_embeddings',
            'n_embd',
            'n_head',
            'n_positions',
            'ffn_dim',
            'global_attn_every_n_layers',
            'local_attention',
        ),
        _SIZE,
    ),
    'type_vocab_size': allow_integers(0, 10_000_000),
    **dict.fromkeys(
        (
            'num_key_value_heads',
            'head_dim',
            'n_inner',
            'rotary_dim',
            'word_embed_proj_dim',
            'sliding_window',
            'sliding_window_pattern',
            '_sliding_window_pattern',
            'original_max_position_embeddings',
        ),
        allow_null(allow_integers(0, 10_000_000)),
    ),
    **dict.fromkeys(('layer_norm_eps', 'layer_norm_epsilon', 'rms_norm_eps', 'norm_eps'), _EPSILON),
    **dict.fromkeys(
        (
            'rope_theta',
            'rotary_emb_base',
            'global_rope_theta',
            'local_rope_theta',
            'rope_local_base_freq',
        ),
        _BASE,
    ),
    'rotary_pct': allow_numbers(least=0, most=1),
    'query_pre_attn_scalar': allow_numbers(least=0, most=10_000_000),
    **dict.fromkeys(
        ('bos_token_id', 'eos_token_id', 'pad_token_id'),
        allow_null(
            Allowed(
                'an id or a list of ids', lambda value: _ID.accepts(value) or _IDS.accepts(value)
            )
        ),
    ),
    **dict.fromkeys(('rope_parameters', 'rope_scaling'), allow_null(OBJECT)),
    'layer_types': allow_null(allow_list(TEXT)),
    **dict.fromkeys(
        (
            'tie_word_embeddings',
            'attention_bias',
            'do_layer_norm_before',
            '_remove_final_layer_norm',
            'norm_bias',
            'use_parallel_residual',
            'use_sliding_window',
        ),
        FLAG,
    ),
    **dict.fromkeys(('is_causal', 'use_bidirectional_attention'), allow_null(FLAG)),
}

# The embeddings of BERT and NomicBERT always include that of a token type.
TYPES_NEEDED: dict[str, Allowed] = {'type_vocab_size': _SIZE}

# Keys of `rope_parameters` and `rope_scaling`, or of their sections for kinds of layers.
ROPE_KEYS: dict[str, Allowed] = {
    **dict.fromkeys(('rope_type', 'type'), allow_null(TEXT)),
    'rope_theta': allow_null(_BASE),
    'factor': allow_null(_FACTOR),
    **dict.fromkeys(('low_freq_factor', 'high_freq_factor'), _FACTOR),
    'original_max_position_embeddings': allow_null(_SIZE),
    **dict.fromkeys(
        ('beta_fast', 'beta_slow', 'mscale', 'mscale_all_dim', 'attention_factor'),
        allow_null(_FACTOR),
    ),
    'partial_rotary_factor': allow_numbers(least=0, most=1),
    'truncate': FLAG,
}
