"""Sizes and texts of a LLaMA, for the tests of llama2.c files and the writer of their golden."""

import tempfile
from pathlib import Path

import numpy as np

from tests.text.test_pretrained_tokenizer import open_directory, write_sentencepiece

SIZES = {
    'hidden_size': 32,
    'intermediate_size': 44,
    'num_hidden_layers': 3,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
}
VOCABULARY = 340
LENGTH = 48
EMBEDDED = 'list file', '', 'token ' * 100


def texts() -> list[np.ndarray]:
    """Returns texts with random ids."""
    random = np.random.default_rng(0)
    return [random.integers(0, VOCABULARY, length) for length in (17, 9, 1, 14)]


def embedded_ids() -> list[np.ndarray]:
    """Returns the ids of the embedded texts, truncated to the maximum length."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = open_directory(
            write_sentencepiece(Path(folder), config={'model_type': 'llama'})
        )
        return tokenizer.encode(list(EMBEDDED), 'x', LENGTH)
