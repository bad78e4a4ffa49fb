"""The language-model stage of cpt-text S: 300M parameters on plain text, as GPT-3 Medium was
trained (arXiv 2005.14165).

The cpt paper starts from such models and tells nothing of their training. Start configs/cpt_s.py
from the run with --config.init_from.
"""

from ml_collections import ConfigDict

from configs import cpt_s


def get_config() -> ConfigDict:
    c = cpt_s.get_config()
    c.objective = 'lm'
    c.data.sources.text.piece_tokens = 2046  # a row, less the ids that begin and end it
    c.data.row_length = 2048  # GPT-3's context
    c.train.batch_pairs = 256  # texts: 0.5M tokens, table 2.1
    # 300B tokens, section 2.2; 20 tokens a parameter (arXiv 2203.15556) are 11,500.
    c.train.steps = 572_000
    c.optimizer.peak_lr = 3e-4  # table 2.1
    # 375M tokens, appendix B; the cosine ends at a tenth there too, after 260B.
    c.optimizer.warmup_steps = 715
    c.optimizer.b2 = 0.95  # appendix B, as weight decay 0.1 and clipping at 1.0
    c.evaluation.every_steps = 2000
    c.checkpoint.every_steps = 1000
    c.checkpoint.keep_every = 50_000
    return c
