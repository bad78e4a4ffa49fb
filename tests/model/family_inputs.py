"""What the models of the families are given, by the tests and by the writer of their golden."""

import numpy as np

VOCABULARY = 77
TEXTS = 19, 12, 1
LONG_TEXTS = 128, 101
WINDOWED = 'gemma3', 'embeddinggemma', 'embeddinggemma, odd', 'modernbert'
# Causal families in which every token may see the whole text: transformers reads
# config.is_causal.
BOTH_WAYS = 'gpt2', 'opt', 'llama', 'mistral', 'qwen2', 'qwen3', 'gemma3'


def ids_of(lengths: tuple[int, ...]) -> list[np.ndarray]:
    """Texts of these lengths, as random ids."""
    random = np.random.default_rng(1)
    return [random.integers(1, VOCABULARY, length) for length in lengths]


def language_texts() -> list[np.ndarray]:
    """Texts whose next tokens are predicted."""
    random = np.random.default_rng(0)
    return [random.integers(0, VOCABULARY, length) for length in (13, 7, 1, 2, 18, 3)]
