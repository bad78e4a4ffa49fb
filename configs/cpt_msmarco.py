"""cpt-text fine-tuned on MS MARCO: queries, passages and mined hard negatives.

From section 4.3 of arXiv 2201.10005. The paper does not publish its settings; these are ours. Each
line of the data is {"query": ..., "positive": ..., "negatives": [...]}.
"""

from ml_collections import ConfigDict

from configs import cpt_s


def get_config() -> ConfigDict:
    c = cpt_s.get_config()
    c.init_from = 'runs/cpt_s'
    c.data.sources = {
        'msmarco': {
            'kind': 'jsonl', 'weight': 1.0, 'path': 'data/msmarco', 'x': 'query', 'y': 'positive',
            'negatives': 'negatives',
            'holdout': 0.01,
        }
    }  # fmt: skip
    c.data.negatives = 4
    c.data.max_tokens_x = 64
    c.data.max_tokens_y = 256
    c.optimizer.peak_lr = 1e-5
    c.optimizer.warmup_steps = 100
    c.train.batch_pairs = 1024
    c.train.steps = 1500  # three epochs of 500,000 queries
    c.evaluation.every_steps = 100
    c.checkpoint.every_steps = 250
    c.checkpoint.keep_every = 500
    return c
