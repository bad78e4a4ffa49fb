"""The vectors that transformers and sentence-transformers compute with a model directory."""

import contextlib
import importlib.util
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Parts of a model that no vector depends on.
UNUSED = 'pooler.', 'lm_head.'


def is_installed() -> bool:
    """Whether the libraries are installed; cpt_jax itself does not need them."""
    names = 'torch', 'transformers', 'sentence_transformers', 'peft'
    return all(importlib.util.find_spec(name) for name in names)


def embed_with_transformers(directory: Path, base: Path, texts: Sequence[str]) -> np.ndarray | None:
    """Returns the unit vectors of queries, float32[n, D].

    Returns None if the libraries refuse the directory, or describe a model whose tensors it lacks,
    which they would initialize at random.

    Args:
      directory: a model or a LoRA adapter.
      base: directory with the tokenizer: that of the adapter's base, or `directory`.
      texts: n texts, none of which is empty.
    """
    # A damaged path of a base must not be looked up on the network.
    os.environ['HF_HUB_OFFLINE'] = '1'
    import transformers

    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter('ignore')
            for stream in (contextlib.redirect_stdout, contextlib.redirect_stderr):
                stack.enter_context(stream(stack.enter_context(open(os.devnull, 'w'))))
            return _embed(directory, base, texts)
    except Exception:  # they raise almost anything for a damaged file
        return None


def _embed(directory: Path, base: Path, texts: Sequence[str]) -> np.ndarray | None:
    import torch
    from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

    model, info = AutoModel.from_pretrained(directory, output_loading_info=True)
    if any(not name.startswith(UNUSED) for name in info['missing_keys']):
        return None
    tokenizer = AutoTokenizer.from_pretrained(base)
    # Without a class in tokenizer_config.json, it builds the tokenizer of the model's family, which
    # is not the one in tokenizer.json.
    if type(tokenizer) is not PreTrainedTokenizerFast:
        return None
    if (directory / 'modules.json').exists():
        return _embed_with_modules(directory, texts)
    # As sentence-transformers truncates.
    longest = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    options = {'truncation': True, 'max_length': longest, 'return_tensors': 'pt'}
    vectors = []
    for text in texts:  # one by one, without padding
        ids = tokenizer(text, **options)['input_ids']
        with torch.no_grad():
            states = model(input_ids=ids).last_hidden_state
        vectors.append(torch.nn.functional.normalize(states[0, -1], dim=0).numpy())
    return np.stack(vectors)


def _embed_with_modules(directory: Path, texts: Sequence[str]) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(str(directory), device='cpu')
    # cpt_jax truncates at the positions of config.json, with a warning.
    positions = model[0].model.config.max_position_embeddings
    model.max_seq_length = min(model.max_seq_length, positions)
    path = directory / 'config_sentence_transformers.json'
    prompts = (json.loads(path.read_text()) if path.is_file() else {}).get('prompts') or {}
    options = {'prompt_name': 'query'} if 'query' in prompts else {}
    encode = model.encode
    return np.concatenate([encode([text], show_progress_bar=False, **options) for text in texts])
