"""cpt-text fine-tuned on NLI: entailment pairs, with contradictions as hard negatives.

From section 4.1 of arXiv 2201.10005. The paper does not publish its settings. Batch size, length
and epochs are those of supervised SimCSE (arXiv 2104.08821), and the learning rate is that of its
large models. For another size, set --config.init_from=runs/cpt_m and the `model` section of that
config.
"""

from ml_collections import ConfigDict

from configs import cpt_s


def get_config() -> ConfigDict:
    c = cpt_s.get_config()
    c.init_from = 'runs/cpt_s'
    c.data.sources = {'nli': {'kind': 'csv', 'weight': 1.0, 'path': 'data/nli_for_simcse.csv'}}
    c.data.negatives = 1
    c.data.max_tokens_x = 34  # 32 and two delimiters
    c.data.max_tokens_y = 34
    c.optimizer.peak_lr = 1e-5
    c.optimizer.warmup_steps = 100
    c.train.batch_pairs = 512
    c.train.steps = 1614  # three epochs of 275,601 triples
    c.evaluation.every_steps = 0
    c.checkpoint.every_steps = 125
    c.checkpoint.keep_every = 125
    return c
