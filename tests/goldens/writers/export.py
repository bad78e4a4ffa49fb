"""Golden `export`: vectors of exported directories in sentence-transformers and transformers."""

import json
import tempfile
from pathlib import Path

import numpy as np
import sentence_transformers
import torch
import transformers

from cpt_jax.embed.load import load_embedder
from cpt_jax.exporting.golden import TEXTS
from tests.conftest import make_tokenizer
from tests.exporting.conftest import export_run, one_row_length
from tests.exporting.export_inputs import (
    CASES,
    MIXED,
    NAMES,
    NARROW,
    TEMPLATE,
    TEMPLATED,
    TEMPLATES,
    choices_of,
    layout_of,
)
from tests.goldens.golden import Golden

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

QWEN3 = {
    'vocab_size': 77,
    'max_position_embeddings': 64,
    'hidden_size': 24,
    'intermediate_size': 40,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'head_dim': 10,
}
LLAMA3 = {
    'rope_type': 'llama3',
    'rope_theta': 500.0,
    'factor': 4.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 2.0,
    'original_max_position_embeddings': 16,
}
PRETRAINED = {
    'llama 3': transformers.LlamaConfig(rope_parameters=LLAMA3, **QWEN3),
    'qwen3': transformers.Qwen3Config(**QWEN3),
    'gemma3': transformers.Gemma3TextConfig(
        sliding_window=10,
        query_pre_attn_scalar=12,
        **QWEN3 | {'num_hidden_layers': 3},
        layer_types=['sliding_attention', 'full_attention', 'sliding_attention'],
    ),
    'opt': transformers.OPTConfig(
        vocab_size=77,
        max_position_embeddings=64,
        do_layer_norm_before=False,
        hidden_size=24,
        ffn_dim=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=10,
    ),
    'roberta': transformers.RobertaConfig(
        vocab_size=77,
        max_position_embeddings=66,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=1,
        num_attention_heads=4,
        type_vocab_size=1,
    ),
    'neox': transformers.GPTNeoXConfig(
        vocab_size=77,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=1,
        num_attention_heads=2,
    ),
}


def make() -> Golden:
    """Returns the content of exports, and the vectors that the two libraries compute with them.

    Raises:
      AssertionError: the libraries disagree with each other, or with the exported run.
    """
    pretrained = {
        name: json.loads(config.to_json_string(use_diff=False))
        for name, config in PRETRAINED.items()
    }
    facts: dict = {'pretrained': pretrained, 'layouts': {}, 'fits': {}}
    arrays = {}
    tokenizer = make_tokenizer()
    with tempfile.TemporaryDirectory() as temporary, one_row_length():
        folder = Path(temporary)
        for case in CASES:
            run, out = export_run(folder / case, tokenizer, **choices_of(case, pretrained))
            facts['layouts'][case] = layout_of(out)
            embed = load_embedder(str(run), max_tokens=40)
            for side, name in NAMES.items():
                arrays[f'{case}/{side}'] = embed_and_compare(out, name, embed(MIXED, side))
        run, out = export_run(folder / 'own', tokenizer, closing='own', causal=True)
        facts['layouts']['own'] = layout_of(out)
        for side, name in NAMES.items():
            ours = load_embedder(str(run))(MIXED, side)
            arrays[f'own/{side}'] = embed_and_compare(out / name, None, ours)
        for kind in TEMPLATES:
            content = pretrained[kind] | {'max_position_embeddings': 40}
            _, out = export_run(
                folder / f'template {kind}',
                tokenizer,
                pretrained=content,
                causal=True,
                template=TEMPLATE,
            )
            facts['layouts'][f'template {kind}'] = layout_of(out)
            filled = [TEMPLATE.replace('{text}', text) for text in TEMPLATED]
            reader = transformers.AutoTokenizer.from_pretrained(out)
            ids = reader(filled)['input_ids']
            # In longer texts, truncation would remove the end of the template.
            facts['fits'][kind] = [
                text for text, row in zip(TEMPLATED, ids, strict=True) if len(row) <= 40
            ]
            assert reader('a')['input_ids'][0] == 1
            fitting = [TEMPLATE.replace('{text}', text) for text in facts['fits'][kind]]
            arrays[f'template {kind}'] = embed_with_transformers(out, fitting)
        for dtype in NARROW:
            _, out = export_run(folder / dtype, tokenizer, dtype=dtype, causal=True)
            facts['layouts'][dtype] = layout_of(out)
            model = sentence_transformers.SentenceTransformer(
                str(out), device='cpu', model_kwargs={'dtype': 'float32'}
            )
            for side, name in NAMES.items():
                arrays[f'{dtype}/{side}'] = model.encode(list(TEXTS), prompt_name=name)
    return Golden(facts, arrays)


def embed_and_compare(directory: Path, prompt_name: str | None, ours: np.ndarray) -> np.ndarray:
    """Returns the vectors of sentence-transformers, compared with the run's and transformers'.

    Args:
      directory: the export.
      prompt_name: name of the prompt in the export; None: no prompt.
      ours: vectors of the run, float32[n, D].

    Raises:
      AssertionError: the vectors differ.
    """
    theirs = sentence_transformers.SentenceTransformer(str(directory), device='cpu')
    prompt = theirs.prompts[prompt_name] if prompt_name else ''
    vectors = theirs.encode(MIXED, prompt_name=prompt_name, batch_size=7)
    alone = [theirs.encode([text], prompt_name=prompt_name) for text in TEXTS]
    np.testing.assert_allclose(vectors, ours, atol=1e-5)
    np.testing.assert_allclose(np.concatenate(alone), ours[: len(TEXTS)], atol=1e-5)
    plain = embed_with_transformers(directory, [prompt + text for text in MIXED])
    np.testing.assert_allclose(plain, ours, atol=1e-5)
    return vectors


def embed_with_transformers(directory: Path, texts: list[str]) -> np.ndarray:
    """Returns the normalized state of the last token, as in the model card, float32[n, D]."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModel.from_pretrained(directory)
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors='pt')
    with torch.no_grad():
        states = model(**batch).last_hidden_state.float()
    last = batch['attention_mask'].sum(1) - 1
    return torch.nn.functional.normalize(states[torch.arange(len(last)), last], dim=-1).numpy()
