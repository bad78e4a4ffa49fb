"""PromptEOL + CSE (arXiv 2307.16645): the paper's fine-tuning, LoRA beside frozen matrices of 4 bits, on NLI triples.

  python launch/train.py --config configs/prompteol_cse_opt_2p7b.py --config.init_from=$HOME/opt-2.7b

The other files of this family set the size.
"""

from ml_collections import ConfigDict

from configs import prompteol


def get_config() -> ConfigDict:
    return adapted(prompteol.opt('2p7b'))


def adapted(c: ConfigDict, batch_pairs: int = 256) -> ConfigDict:
    """With the paper's adapters, learning rate and precision."""
    c.lora.rank = 64
    c.lora.alpha = 16.0
    c.lora.dropout = 0.05
    c.lora.base = 'nf4'
    c.optimizer.peak_lr = 5e-4
    c.model.dtype = 'float32'
    c.train.batch_pairs = batch_pairs
    c.train.steps = 275_601 // batch_pairs  # one epoch
    return c
