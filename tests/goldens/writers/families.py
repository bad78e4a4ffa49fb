"""Golden `families`: hidden states of transformers' models of every supported family."""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

from tests.goldens.golden import Golden, capture, restore
from tests.model.family_inputs import (
    BIDIRECTIONAL_CASES,
    BY_DISTANCE,
    LONG_TEXTS,
    TEXTS,
    VOCABULARY,
    make_random_ids,
)

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

LLAMA3 = {
    'rope_type': 'llama3',
    'rope_theta': 500.0,
    'factor': 4.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 2.0,
}
SMALL = {
    'hidden_size': 24,
    'intermediate_size': 40,
    'num_hidden_layers': 3,
    'num_attention_heads': 6,
    'max_position_embeddings': 40,
}
GPT = {
    'n_embd': 24,
    'n_layer': 2,
    'n_head': 4,
    'n_positions': 40,
    'bos_token_id': None,
    'eos_token_id': None,
}
OPT = {
    'hidden_size': 24,
    'ffn_dim': 40,
    'num_hidden_layers': 3,
    'num_attention_heads': 6,
    'max_position_embeddings': 40,
}
YARN = {
    'rope_type': 'yarn',
    'rope_theta': 500.0,
    'factor': 4.0,
    'original_max_position_embeddings': 10,
}
PARTIAL_YARN = YARN | {
    'beta_fast': 4,
    'beta_slow': 0.5,
    'mscale': 0.7,
    'mscale_all_dim': 0.3,
    'truncate': False,
}
LONG = {'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 1e3}
GEMMA = SMALL | {
    'num_key_value_heads': 2,
    'head_dim': 10,
    'query_pre_attn_scalar': 7,
    'sliding_window': 5,
}
DISTIL = {
    'dim': 24,
    'hidden_dim': 40,
    'n_layers': 2,
    'n_heads': 6,
    'max_position_embeddings': 40,
}
MODERN = SMALL | {'num_attention_heads': 4, 'local_attention': 6, 'pad_token_id': 0}
FULL, LOCAL = 'full_attention', 'sliding_attention'
CASES = {
    'gpt2': ('GPT2', GPT | {'n_head': 6}),
    'gpt2, one layer, relu': (
        'GPT2',
        GPT
        | {'n_layer': 1, 'n_inner': 31, 'activation_function': 'relu', 'layer_norm_epsilon': 1e-3},
    ),
    'opt': ('OPT', OPT | {'word_embed_proj_dim': 24}),
    'opt 350m': ('OPT', OPT | {'word_embed_proj_dim': 10, 'do_layer_norm_before': False}),
    'opt, gelu': (
        'OPT',
        OPT | {'word_embed_proj_dim': 24, 'activation_function': 'gelu', 'num_hidden_layers': 1},
    ),
    'neox': ('GPTNeoX', SMALL | {'num_attention_heads': 3, 'rotary_pct': 0.5}),
    'neox, in turn': (
        'GPTNeoX',
        SMALL
        | {'num_attention_heads': 3, 'use_parallel_residual': False, 'hidden_act': 'gelu_new'},
    ),
    'gptj': ('GPTJ', GPT | {'rotary_dim': 4}),
    'gptj, all turns': ('GPTJ', GPT | {'rotary_dim': 6, 'n_inner': 31, 'n_layer': 3}),
    'codegen': ('CodeGen', GPT | {'n_embd': 32, 'rotary_dim': 4}),
    'codegen, 8 heads': ('CodeGen', GPT | {'n_embd': 48, 'n_head': 8, 'rotary_dim': 6}),
    'llama': ('Llama', SMALL | {'num_key_value_heads': 2, 'rms_norm_eps': 1e-3}),
    'llama 3, biases': (
        'Llama',
        SMALL
        | {
            'rope_parameters': LLAMA3 | {'original_max_position_embeddings': 16},
            'attention_bias': True,
        },
    ),
    'llama, linear': (
        'Llama',
        SMALL
        | {
            'head_dim': 10,
            'rope_parameters': {'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 1e4},
        },
    ),
    'llama, yarn': ('Llama', SMALL | {'num_attention_heads': 2, 'rope_parameters': YARN}),
    'mistral': ('Mistral', SMALL | {'num_key_value_heads': 3, 'sliding_window': None}),
    'mistral, head width': (
        'Mistral',
        SMALL | {'num_key_value_heads': 1, 'head_dim': 8, 'sliding_window': 24},
    ),
    'qwen2': ('Qwen2', SMALL | {'num_key_value_heads': 2}),
    'qwen2, tied': (
        'Qwen2',
        SMALL | {'num_key_value_heads': 6, 'tie_word_embeddings': True, 'num_hidden_layers': 1},
    ),
    'qwen2, yarn': (
        'Qwen2',
        SMALL
        | {'num_attention_heads': 2, 'num_key_value_heads': 1, 'rope_parameters': PARTIAL_YARN},
    ),
    'qwen3': ('Qwen3', SMALL | {'num_key_value_heads': 2, 'head_dim': 10}),
    'qwen3, biases': (
        'Qwen3',
        SMALL | {'num_key_value_heads': 6, 'head_dim': 4, 'attention_bias': True},
    ),
    'qwen3, yarn': (
        'Qwen3',
        SMALL
        | {
            'num_key_value_heads': 2,
            'head_dim': 10,
            'rope_parameters': YARN | {'attention_factor': 1.3},
        },
    ),
    'gemma3': ('Gemma3Text', GEMMA | {'num_hidden_layers': 5, 'sliding_window_pattern': 3}),
    'gemma3, full at the end': (
        'Gemma3Text',
        GEMMA | {'layer_types': [LOCAL, LOCAL, FULL], 'num_key_value_heads': 6, 'head_dim': 4},
    ),
    'gemma3, one layer': (
        'Gemma3Text',
        GEMMA
        | {
            'num_hidden_layers': 1,
            'attention_bias': True,
            'hidden_activation': 'gelu',
            'sliding_window': 1,
        },
    ),
    'gemma3, all full': (
        'Gemma3Text',
        GEMMA | {'layer_types': [FULL] * 3, 'rope_parameters': {FULL: YARN}},
    ),
    'embeddinggemma': (
        'Gemma3Text',
        GEMMA
        | {
            'num_hidden_layers': 4,
            'use_bidirectional_attention': True,
            'sliding_window_pattern': 2,
        },
    ),
    'embeddinggemma, odd': (
        'Gemma3Text',
        GEMMA
        | {
            'use_bidirectional_attention': True,
            'sliding_window': 9,
            'layer_types': [FULL, LOCAL, LOCAL],
            'num_key_value_heads': 1,
            'rope_parameters': {FULL: LONG, LOCAL: YARN},
        },
    ),
    'embeddinggemma, told twice': (
        'Gemma3Text',
        GEMMA
        | {'use_bidirectional_attention': True, 'is_causal': False, 'sliding_window_pattern': 2},
    ),
    'modernbert': ('ModernBert', MODERN | {'num_hidden_layers': 5}),
    'modernbert, biases': (
        'ModernBert',
        MODERN
        | {
            'num_hidden_layers': 4,
            'attention_bias': True,
            'norm_bias': True,
            'local_attention': 9,
            'norm_eps': 1e-3,
        },
    ),
    'modernbert, one layer': (
        'ModernBert',
        MODERN | {'num_hidden_layers': 1, 'hidden_activation': 'gelu_new'},
    ),
    'modernbert, one local layer': (
        'ModernBert',
        MODERN | {'num_hidden_layers': 1, 'layer_types': [LOCAL]},
    ),
    'bert': ('Bert', SMALL),
    'bert, tanh': (
        'Bert',
        SMALL
        | {
            'num_hidden_layers': 1,
            'hidden_act': 'gelu_new',
            'layer_norm_eps': 1e-3,
            'type_vocab_size': 3,
        },
    ),
    'roberta': ('Roberta', SMALL | {'type_vocab_size': 1, 'layer_norm_eps': 1e-5}),
    'xlm-roberta': ('XLMRoberta', SMALL | {'num_hidden_layers': 1, 'pad_token_id': 10}),
    'distilbert': ('DistilBert', DISTIL),
    'mpnet': ('MPNet', SMALL | {'num_hidden_layers': 2, 'max_position_embeddings': 130}),
    'nomic_bert': ('NomicBert', SMALL),
    'nomic_bert, linear': (
        'NomicBert',
        SMALL
        | {
            'num_hidden_layers': 1,
            'head_dim': 10,
            'hidden_act': 'gelu',
            'layer_norm_eps': 1e-3,
            'type_vocab_size': 3,
            'rope_parameters': LONG,
        },
    ),
    'gte': ('Gte', SMALL),
    'gte, no token types': (
        'Gte',
        SMALL
        | {
            'num_hidden_layers': 2,
            'num_attention_heads': 2,
            'hidden_act': 'gelu_new',
            'type_vocab_size': 0,
            'rope_parameters': YARN,
        },
    ),
}
# Configs as written by transformers 4, with the keys that describe layers.
GEMMA_1B = {
    'model_type': 'gemma3_text', 'hidden_size': 1152, 'intermediate_size': 6912,
    'num_hidden_layers': 26, 'num_attention_heads': 4,
    'num_key_value_heads': 1, 'head_dim': 256, 'max_position_embeddings': 32768,
    'query_pre_attn_scalar': 256, 'rope_theta': 1000000,
    'rope_local_base_freq': 10000, 'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'},
    'sliding_window': 512,
    'sliding_window_pattern': 6, 'attn_logit_softcapping': None, 'final_logit_softcapping': None,
    'vocab_size': 262144,
}  # fmt: skip
MODERN_BASE = {
    'model_type': 'modernbert', 'hidden_size': 768, 'intermediate_size': 1152,
    'num_hidden_layers': 22, 'num_attention_heads': 12,
    'max_position_embeddings': 8192, 'global_attn_every_n_layers': 3,
    'global_rope_theta': 160000.0, 'local_rope_theta': 10000.0,
    'local_attention': 128, 'norm_bias': False, 'norm_eps': 1e-5, 'mlp_bias': False,
    'attention_bias': False, 'classifier_pooling': 'mean',
}  # fmt: skip
NOMIC_V1 = {
    'model_type': 'nomic_bert', 'activation_function': 'swiglu', 'causal': False,
    'layer_norm_epsilon': 1e-12, 'max_trained_positions': 2048, 'mlp_fc1_bias': False,
    'mlp_fc2_bias': False, 'n_embd': 768, 'n_head': 12, 'n_inner': 3072, 'n_layer': 12,
    'n_positions': 8192, 'parallel_block': False, 'prenorm': False, 'qkv_proj_bias': False,
    'rotary_emb_base': 1000, 'rotary_emb_fraction': 1.0, 'rotary_emb_interleaved': False,
    'rotary_emb_scale_base': None, 'rotary_scaling_factor': 2, 'type_vocab_size': 2,
    'use_rms_norm': False, 'vocab_size': 30528,
}  # fmt: skip
OLD = {
    'gemma 3 1b': ('Gemma3Text', GEMMA_1B),
    'gemma 3 1b, both ways': ('Gemma3Text', GEMMA_1B | {'use_bidirectional_attention': True}),
    'modernbert base': ('ModernBert', MODERN_BASE),
}


def make() -> Golden:
    """Returns a directory and hidden states for each case, and configs written by transformers."""
    facts: dict = {'cases': {}, 'configs': {}}
    arrays = {}
    with tempfile.TemporaryDirectory() as temporary:
        for case, (name, sizes) in CASES.items():
            folder = Path(temporary) / case
            model_class = getattr(transformers, f'{name}Model')
            save(model_class, sizes, folder / 'written')
            facts['cases'][case] = capture(folder / 'written')
            restore(facts['cases'][case], folder / 'drawn')
            model = model_class.from_pretrained(folder / 'drawn').eval()
            arrays[case] = compute_states(model, make_random_ids(TEXTS))
            if case in BY_DISTANCE:
                arrays[f'{case}/long'] = compute_states(model, make_random_ids(LONG_TEXTS))
            if case in BIDIRECTIONAL_CASES:
                arrays[f'{case}/both ways'] = compute_bidirectional_states(
                    model, make_random_ids((9, 9))
                )
        sharded = Path(temporary) / 'sharded'
        facts['sharded'] = write_sharded(sharded / 'written')
        model = transformers.LlamaForCausalLM.from_pretrained(
            restore(facts['sharded'], sharded / 'drawn'), dtype=torch.bfloat16
        ).eval()
        arrays['sharded'] = compute_states(model.model.float(), make_random_ids(TEXTS))
    for name, (kind, old) in OLD.items():
        read = getattr(transformers, f'{kind}Config')(**old)
        facts['configs'][name] = {
            'old': old,
            'new': config_to_dict(read),
            'window': read.sliding_window,
        }
    facts['configs']['nomic-embed-text-v1'] = {
        'old': NOMIC_V1,
        'new': config_to_dict(transformers.NomicBertConfig(**NOMIC_V1)),
    }
    facts['configs']['mistral, window'] = config_to_dict(
        transformers.MistralConfig(sliding_window=16, num_key_value_heads=2, **SMALL)
    )
    facts['configs']['gemma3'] = config_to_dict(transformers.Gemma3TextConfig(**GEMMA))
    return Golden(facts, arrays)


def save(model_class, sizes: dict, folder: Path, **options) -> None:
    """Writes the directory of a model with random weights."""
    config = model_class.config_class(vocab_size=VOCABULARY, **sizes)
    model_class(config).save_pretrained(folder, **options)


def write_sharded(folder: Path) -> dict:
    """Writes a bfloat16 language model with an output head in shards; returns the captured
    directory.
    """
    config = transformers.LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=False, **SMALL)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size='10KB')
    return capture(folder)


def config_to_dict(config) -> dict:
    """Returns all keys of a config, as JSON values."""
    return json.loads(config.to_json_string(use_diff=False))


def compute_states(model, texts: list[np.ndarray]) -> np.ndarray:
    """Returns the hidden states of all texts, float32[tokens, D], computed in one padded batch."""
    length = max(map(len, texts))
    ids = torch.tensor(np.stack([np.pad(text, (0, length - len(text))) for text in texts]))
    mask = torch.tensor([[1] * len(text) + [0] * (length - len(text)) for text in texts])
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
    return np.concatenate([row[: len(text)] for row, text in zip(found, texts, strict=True)])


def compute_bidirectional_states(model, texts: list[np.ndarray]) -> np.ndarray:
    """Returns the hidden states of a causal model with a bidirectional mask, float32[tokens, D]."""
    model.config.is_causal = False
    for module in model.modules():
        if hasattr(module, 'is_causal'):
            module.is_causal = False
    return compute_states(model, texts)
