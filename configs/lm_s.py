"""The language model from which cpt-text S starts: GPT-3 Medium, 300M parameters, on plain text.

The cpt paper does not describe the training of its initial models. These settings are from the
GPT-3 paper (arXiv 2005.14165). To continue, start configs/cpt_s.py with
--config.init_from=runs/lm_s.
"""

from ml_collections import ConfigDict

from configs import cpt_s


def get_config() -> ConfigDict:
    c = cpt_s.get_config()
    c.objective = 'lm'
    c.data.sources.text.piece_tokens = 2046  # a row without its first and last id
    c.data.row_length = 2048  # GPT-3's context
    c.train.batch_pairs = 256  # texts; 0.5M tokens, table 2.1
    # 300B tokens, section 2.2. With 20 tokens per parameter (arXiv 2203.15556) it would be 11,500.
    c.train.steps = 572_000
    c.optimizer.peak_lr = 3e-4  # table 2.1
    # 375M tokens, appendix B. There too, the cosine ends at 10 % of peak_lr, but after 260B tokens.
    c.optimizer.warmup_steps = 715
    c.optimizer.b2 = 0.95  # appendix B, like weight decay 0.1 and clipping at 1.0
    c.evaluation.every_steps = 2000
    c.checkpoint.every_steps = 1000
    c.checkpoint.keep_every = 50_000
    return c
