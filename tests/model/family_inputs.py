"""Inputs of the pretrained families, for the tests and for the writer of their golden."""

import numpy as np

VOCABULARY = 77
TEXTS = 19, 12, 1
LONG_TEXTS = 128, 101
WINDOWED = 'gemma3', 'embeddinggemma', 'embeddinggemma, odd', 'modernbert'
# Cases whose attention depends on the distance of two tokens, for which long texts are computed.
BY_DISTANCE = *WINDOWED, 'mpnet'
# Causal families that transformers can also run bidirectionally: it reads config.is_causal.
BIDIRECTIONAL_CASES = 'gpt2', 'opt', 'llama', 'mistral', 'qwen2', 'qwen3', 'gemma3'


def make_random_ids(lengths: tuple[int, ...]) -> list[np.ndarray]:
    """Returns texts of these lengths with random ids."""
    random = np.random.default_rng(1)
    return [random.integers(1, VOCABULARY, length) for length in lengths]


def language_texts() -> list[np.ndarray]:
    """Returns texts whose next tokens are predicted."""
    random = np.random.default_rng(0)
    return [random.integers(0, VOCABULARY, length) for length in (13, 7, 1, 2, 18, 3)]
