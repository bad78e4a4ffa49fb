"""PromptEOL + CSE in minutes on a laptop, from llama2.c's stories260K.

stories260K has 260,000 parameters and was trained on children's stories.

Example:
  python launch/train.py --config configs/prompteol_cse_tiny.py --config.init_from=stories260k

`init_from` is a directory with stories260K.bin and its tok512.bin. The results of such a small
model say little about the models of the paper, but every step is the same.
"""

from ml_collections import ConfigDict

from configs import prompteol


def get_config() -> ConfigDict:
    c = prompteol.make_stories_config()
    c.data.max_tokens_x = 80  # with a vocabulary of 512, the template has more tokens
    c.data.max_tokens_y = 80
    c.data.row_length = 160
    c.model.remat = 'none'
    c.optimizer.peak_lr = 1e-3
    c.optimizer.warmup_steps = 20
    c.train.batch_pairs = 128
    c.train.steps = 100
    c.checkpoint.every_steps = 20
    c.checkpoint.keep_every = 20
    return c
