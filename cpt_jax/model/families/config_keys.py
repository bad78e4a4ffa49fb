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
_EPSILON = allow_numbers(least=0.0)
_BASE = allow_numbers(least=1.0)

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
            'type_vocab_size',
            'global_attn_every_n_layers',
            'local_attention',
        ),
        _SIZE,
    ),
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
    'rotary_pct': allow_numbers(least=0.0),
    'query_pre_attn_scalar': allow_numbers(least=0.0),
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
