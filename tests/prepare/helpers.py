"""Small corpora, and what a preparation made of them."""

from pathlib import Path

import numpy as np

from cpt_jax.data.pairs import Pair
from cpt_jax.data.sources.tfds_pairs import TfdsSource
from cpt_jax.runs.config_file import load_config
from tests.conftest import WORDS


def make_document(seed: int, sentences: int = 12) -> str:
    """Returns a document of sentences of eight words, which no other seed repeats."""
    random = np.random.default_rng(seed)
    lines = [f'{" ".join(random.choice(WORDS, 7))} n{seed}x{i}.' for i in range(sentences)]
    return '\n'.join(lines)


def write_texts(folder: Path, documents: int, first: int = 0) -> Path:
    """Writes documents as text files; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + documents):
        (folder / f'{i:04d}.txt').write_text(make_document(i))
    return folder


def make_config(name: str = 'prepare_text', **sources: dict) -> dict:
    """Returns a config of configs/ with other sources and small pieces."""
    config = load_config(f'configs/{name}.py')
    rules = {'reader': 'text', 'pairs': 'neighbours', 'piece_characters': 160, 'min_characters': 20}
    for section in sources.values():
        if section.get('pairs', 'neighbours') != 'neighbours':
            section.update(reader=section.get('reader', 'jsonl'))
    config['sources'] = {
        name: section if 'pairs' in section else rules | section
        for name, section in sources.items()
    }
    return config


def read_pairs(output: Path, split: str = 'all') -> list[Pair]:
    """Returns the pairs of a prepared directory."""
    source = TfdsSource(path=str(output), split=split)
    return [source[i] for i in range(len(source))]


def get_texts(output: Path) -> list[tuple[str, str]]:
    """Returns (x, y) of all pairs, sorted."""
    return sorted((pair.x, pair.y) for pair in read_pairs(output))
