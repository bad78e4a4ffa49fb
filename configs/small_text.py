r"""The quickstart's model on your own prose: pairs of neighbouring pieces, as in cpt-text.

Example:
  python launch/train.py --config configs/small_text.py \
      --config.data.sources.text.path=my/notes
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    c = quickstart.get_config()
    # A file is one document. With `separator`, a regular expression, each matching line begins a
    # new document. A batch never contains two pairs of one document, so there must be at least
    # `batch_pairs` documents.
    c.data.sources = {
        'text': {
            'kind': 'text',
            'weight': 1.0,
            'path': 'data/text',
            'piece_tokens': 62,
            'separator': '',
            'holdout': 0.1,
        }
    }
    c.data.max_tokens_x = 64  # both sides are pieces of the same length
    c.data.row_length = 256  # pieces of 40 to 64 tokens do not fill short rows
    c.train.batch_pairs = 64
    return c
