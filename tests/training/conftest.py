"""Runs that are small enough for tests: the real program on a few hundred made-up pairs."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.programs import Program, start_program

CONFIG = """
from configs import base

def get_config():
    c = base.get_config()
    c.tokenizer.vocab_size = 320
    c.data.sources = {'pairs': {'kind': 'jsonl', 'weight': 1.0, 'path': %r, 'holdout': 0.2}}
    c.data.max_tokens_x = c.data.max_tokens_y = c.data.row_length = 32
    c.data.row_choices = 1
    c.model.width, c.model.layers, c.model.heads, c.model.max_length = 32, %d, 4, 32
    c.model.init, c.model.remat = 'passthrough', 'none'
    c.optimizer.peak_lr, c.optimizer.warmup_steps = 3e-3, 2
    c.train.steps, c.train.batch_pairs, c.train.log_every = 12, 32, 1
    c.evaluation.every_steps, c.evaluation.pairs = 6, 50
    c.checkpoint.every_steps = 4
    return c
"""


def write_config(folder: Path, layers: int = 2) -> Path:
    """Writes a file of 300 pairs and a config that reads it; returns the config's path."""
    random = np.random.default_rng(0)
    words = [
        'list',
        'file',
        'parser',
        'value',
        'index',
        'error',
        'string',
        'number',
        'table',
        'model',
        'token',
        'batch',
        'vector',
        'query',
    ]
    texts = [random.choice(words, random.integers(3, 9)) for _ in range(300)]

    def make_code(text):
        return 'def ' + '_'.join(text[::-1]) + '(): pass'

    def make_negatives(i):
        return [make_code(texts[i - 1 - k][:4]) for k in range(i % 4)]

    rows = [
        {
            'x': ' '.join(text),
            'y': make_code(text),
            'negatives': make_negatives(i),
            'id': i,
            'scores': [(i + 7 * k) % 5 for k in range(1 + i % 4)],  # of y and the hard negatives
            'score': i % 6 / 5,
        }
        for i, text in enumerate(texts)
    ]
    data = folder / 'pairs.jsonl'
    data.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    config = folder / 'tiny.py'
    config.write_text(CONFIG % (str(data), layers))
    return config


@pytest.fixture(scope='module')
def config_file(tmp_path_factory) -> Path:
    return write_config(tmp_path_factory.mktemp('config'))


def start(config: Path, cwd: Path, workdir: str, *flags: str, devices: int = 1) -> Program:
    """Starts launch/train.py as a user would."""
    given = '--config', str(config), '--workdir', workdir
    return start_program('train', *given, *flags, cwd=cwd, devices=devices)


@pytest.fixture
def launch(config_file, tmp_path):
    """A function that starts launch/train.py with the tests' config in the test's own directory."""

    def launch(workdir: str, *flags: str, devices: int = 1, cwd: Path = tmp_path) -> Program:
        return start(config_file, cwd, workdir, *flags, devices=devices)

    return launch
