"""cpt-text fine-tuned on MS MARCO (arXiv 2201.10005, section 4.3): queries, their passages, and
mined hard negatives.

The paper gives no settings; these are own choices. A line of the file: {"query": ..., "positive":
..., "negatives": [...]}.
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
    c.train.steps = 1500  # three epochs of half a million queries
    c.evaluation.every_steps = 100
    c.checkpoint.every_steps = 250
    c.checkpoint.keep_every = 500
    return c
