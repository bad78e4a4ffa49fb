"""A real model in minutes on two CPU cores: from scratch, on the docstrings and functions of the Python installation itself."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.tokenizer.vocab_size = 8192
    c.tokenizer.normalization = 'nmt_nfkc_cf'
    c.tokenizer.characters = 8_000_000
    c.data.max_tokens_x = 32
    c.data.max_tokens_y = 64
    c.data.row_length = 128
    c.model.width = 256
    c.model.layers = 1
    c.model.heads = 4
    c.model.max_length = 64
    c.model.init = 'passthrough'
    c.model.remat = 'none'
    c.optimizer.peak_lr = 3e-3
    c.optimizer.warmup_steps = 20
    c.train.steps = 300
    c.train.batch_pairs = 512
    c.evaluation.every_steps = 100
    c.checkpoint.every_steps = 100
    c.checkpoint.keep_every = 0
    return c
