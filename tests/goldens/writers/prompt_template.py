"""Golden `prompt_template`: ids and vectors of texts in a template, computed by transformers as in
the paper.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

from tests.goldens.golden import Golden, capture, restore
from tests.text import test_prompt_template as inputs

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SIZES = {
    'vocab_size': 340,
    'hidden_size': 16,
    'num_hidden_layers': 2,
    'num_attention_heads': 2,
    'max_position_embeddings': 320,
}
CONFIGS = {
    'llama': lambda: transformers.LlamaConfig(
        intermediate_size=24, bos_token_id=1, eos_token_id=2, **SIZES
    ),
    'opt': lambda: transformers.OPTConfig(
        ffn_dim=24,
        bos_token_id=2,
        eos_token_id=2,
        pad_token_id=1,
        word_embed_proj_dim=12,
        do_layer_norm_before=False,
        **SIZES,
    ),
}
TOKENIZERS = {'llama': inputs.write_llama_tokenizer, 'opt': inputs.write_opt_tokenizer}


def make() -> Golden:
    """Returns the ids of the paper's strings, captured models, and vectors."""
    facts: dict = {'ids': {}, 'models': {}}
    arrays = {}
    with tempfile.TemporaryDirectory() as temporary:
        for kind in ('opt', 'llama'):
            folder = Path(temporary) / kind
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                TOKENIZERS[kind](folder / 'tokenizer')
            )
            facts['ids'][kind] = [
                ' '.join(map(str, tokenizer(string)['input_ids']))
                for string in inputs.GOLDEN.values()
            ]
            transformers.AutoModel.from_config(CONFIGS[kind]()).save_pretrained(folder / 'written')
            facts['models'][kind] = capture(folder / 'written')
            drawn = TOKENIZERS[kind](folder / 'drawn')
            restore(facts['models'][kind], drawn)
            for name in [name for other, name in inputs.VECTORS if other == kind]:
                strings = inputs.fill_templates(name)
                arrays[f'{kind}/{name}'] = embed_left_padded(drawn, strings, name == 'mean')
    return Golden(facts, arrays)


def embed_left_padded(folder: Path, strings: list[str], mean: bool) -> np.ndarray:
    """Returns unit vectors, float32[n, D], computed as in the paper's evaluation.py.

    Args:
      folder: directory of the model.
      strings: texts in their template.
      mean: whether to average over tokens; padding then counts as zeros, as in the paper.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    rows = [tokenizer(string)['input_ids'] for string in strings]
    widest = max(map(len, rows))
    ids = torch.tensor([[0] * (widest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (widest - len(row)) + [1] * len(row) for row in rows])
    with torch.no_grad():
        h = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
    vectors = ((h * mask[..., None]).mean(1) if mean else h[:, -1]).numpy()
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
