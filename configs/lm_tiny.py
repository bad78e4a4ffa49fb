"""A small language model, trained in minutes on two CPU cores on the installed Python packages.

The texts are their docstrings and functions.

Example:
  python launch/train.py --config configs/lm_tiny.py

A contrastive run starts from it with --config.init_from=runs/lm_tiny. To train on your own prose,
use the source of configs/small_text.py with piece_tokens = data.row_length - 2, so that a piece
with its first and last id fills a row.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.objective = 'lm'
    # Even with this small vocabulary, the logits cost as much compute as several layers.
    c.tokenizer.vocab_size = 4096
    c.tokenizer.characters = 20_000_000

    c.data.max_tokens_x = 128  # used by a contrastive run that starts from this one
    c.data.max_tokens_y = 128
    c.data.row_length = 256

    c.model.width = 128
    c.model.layers = 2
    c.model.heads = 2
    c.model.max_length = 256
    c.model.remat = 'none'

    c.optimizer.peak_lr = 4e-3
    c.optimizer.warmup_steps = 30
    c.optimizer.b2 = 0.95  # GPT-3
    c.train.steps = 400
    c.train.batch_pairs = 32

    c.evaluation.every_steps = 100
    c.evaluation.pairs = 200
    c.checkpoint.every_steps = 100
    c.checkpoint.keep_every = 0
    return c
