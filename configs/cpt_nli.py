"""cpt-text fine-tuned on NLI (arXiv 2201.10005, section 4.1): entailment pairs, contradictions as
hard negatives beside those of the batch.

The paper gives no settings: batch, length and epochs are those of supervised SimCSE (arXiv
2104.08821), the learning rate that of its large models. Another size:
--config.init_from=runs/cpt_m, and that config's `model`.
"""

from ml_collections import ConfigDict

from configs import cpt_s


def get_config() -> ConfigDict:
    c = cpt_s.get_config()
    c.init_from = 'runs/cpt_s'
    c.data.sources = {'nli': {'kind': 'csv', 'weight': 1.0, 'path': 'data/nli_for_simcse.csv'}}
    c.data.negatives = 1
    c.data.max_tokens_x = 34  # 32 and the delimiters
    c.data.max_tokens_y = 34
    c.optimizer.peak_lr = 1e-5
    c.optimizer.warmup_steps = 100
    c.train.batch_pairs = 512
    c.train.steps = 1614  # three epochs of 275,601 triples
    c.evaluation.every_steps = 0
    c.checkpoint.every_steps = 125
    c.checkpoint.keep_every = 125
    return c
