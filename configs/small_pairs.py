r"""The quickstart's model on your own pairs, in JSON lines files.

Example:
  python launch/train.py --config configs/small_pairs.py \
      --config.data.sources.pairs.path=my/pairs

If the fields are not called x and y, set --config.data.sources.pairs.x=question and
--config.data.sources.pairs.y=answer.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    c = quickstart.get_config()
    # path: a .jsonl file, a folder or a glob. x, y: names of the fields. group: fields of which the
    # first existing one is the group of a row; a group is held out as a whole.
    c.data.sources = {
        'pairs': {
            'kind': 'jsonl', 'weight': 1.0, 'path': 'data/pairs', 'x': 'x', 'y': 'y',
            'group': ('group', 'file', 'path'), 'holdout': 0.05,
        }
    }  # fmt: skip
    return c
