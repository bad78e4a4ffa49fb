"""A LLaMA's sizes and texts, for the tests of llama2.c's files and the writer of their golden."""

import tempfile
from pathlib import Path

import numpy as np

from tests.text.test_pretrained_tokenizer import opened, pieces

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
    """Texts as random ids."""
    random = np.random.default_rng(0)
    return [random.integers(0, VOCABULARY, length) for length in (17, 9, 1, 14)]


def embedded_ids() -> list[np.ndarray]:
    """The ids of the texts that are embedded, cut to the model's length."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = opened(pieces(Path(folder), config={'model_type': 'llama'}))
        return tokenizer.encode(list(EMBEDDED), 'x', LENGTH)
