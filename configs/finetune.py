r"""An embedding model or language model, fine-tuned on your own pairs.

Example:
  python launch/train.py --config configs/finetune.py:models/all-MiniLM-L6-v2 \
      --workdir runs/tuned --config.data.sources.pairs.path=my/pairs

The argument is the directory of the model, or a run that started from one. The pairs are JSON lines
with the fields x and y. If the fields have other names, set --config.data.sources.pairs.x=question
and --config.data.sources.pairs.y=answer. For CSV files, set --config.data.sources.pairs.kind=csv,
and --config.data.sources.pairs.negatives='' if they have no hard negatives.

The learning rate, warm-up and decay are those of the examples of sentence-transformers. The model
keeps its pooling, special tokens, prompts and Dense modules (docs/fine-tuning.md).
"""

from ml_collections import ConfigDict

from configs import base


def get_config(model: str) -> ConfigDict:
    c = base.get_config()
    c.init_from = model
    # group: fields of which the first existing one is the group of a row; a group is held out as a
    # whole.
    c.data.sources = {
        'pairs': {
            'kind': 'jsonl', 'weight': 1.0, 'path': 'data/pairs', 'x': 'x', 'y': 'y',
            'group': ('group', 'file', 'path'), 'holdout': 0.05,
        }
    }  # fmt: skip
    # From the data, at most what the model reads.
    c.data.max_tokens_x = 0
    c.data.max_tokens_y = 0
    c.data.row_length = 0

    c.model.remat = 'none'

    c.loss.initial_temperature = 0.05
    c.loss.train_temperature = False

    c.optimizer.peak_lr = 2e-5
    c.optimizer.warmup_share = 0.1
    c.optimizer.decay = 'linear'
    c.optimizer.final_share = 0.0
    c.optimizer.weight_decay = 0.01
    c.optimizer.b2 = 0.999

    c.train.epochs = 1.0
    c.train.batch_pairs = 64

    c.evaluation.times = 10
    c.evaluation.patience = 3
    c.checkpoint.keep_best = True
    c.checkpoint.keep_latest = 1
    c.checkpoint.keep_every = 0
    return c
