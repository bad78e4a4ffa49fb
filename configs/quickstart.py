"""A code search model, trained from scratch in minutes on two CPU cores.

The data are docstrings and functions of the installed Python packages. docs/benchmarks.md
describes how the settings were chosen and which of them mattered.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    # With folded case and without spaces, a word has the same ids in prose and in identifiers, so
    # that a query and a function have ids in common before the first step.
    c.tokenizer.vocab_size = 4096
    c.tokenizer.normalization = 'nmt_nfkc_cf'
    c.tokenizer.whitespace = 'drop'
    c.tokenizer.closing = 'shared'
    c.tokenizer.characters = 20_000_000

    c.data.max_tokens_x = 32
    c.data.max_tokens_y = 64
    c.data.row_length = 64
    c.data.row_choices = 1  # a second program takes longer to compile than it saves here

    c.model.width = 256
    c.model.layers = 1
    c.model.heads = 4
    c.model.max_length = 64
    c.model.init = 'passthrough'
    c.model.remat = 'none'

    c.loss.initial_temperature = 0.05

    c.optimizer.peak_lr = 2e-3
    c.optimizer.warmup_steps = 24
    c.optimizer.final_share = 0.05
    c.optimizer.weight_decay = 0.01

    c.train.steps = 120  # two epochs; more did not help
    c.train.batch_pairs = 256

    c.evaluation.every_steps = 30
    c.checkpoint.every_steps = 40
    c.checkpoint.keep_every = 0
    return c
