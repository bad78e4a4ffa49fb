r"""Your own pairs on a laptop: the quickstart's model on JSON lines.

Example:
  python launch/train.py --config configs/small_pairs.py \
      --config.data.sources.pairs.path=my/pairs

Where the fields are not x and y: --config.data.sources.pairs.x=question
--config.data.sources.pairs.y=answer
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    c = quickstart.get_config()
    # A file, a folder or a pattern of .jsonl files, and the names of their fields. Rows that agree
    # in a field of `group`, where they have one, are held out together.
    c.data.sources = {
        'pairs': {
            'kind': 'jsonl', 'weight': 1.0, 'path': 'data/pairs', 'x': 'x', 'y': 'y',
            'group': ('group', 'file', 'path'), 'holdout': 0.05,
        }
    }  # fmt: skip
    return c
