r"""Your own prose on a laptop: the quickstart's model on neighbouring pieces of text, as cpt-text
was trained.

Example:
  python launch/train.py --config configs/small_text.py \
      --config.data.sources.text.path=my/notes
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    c = quickstart.get_config()
    # A file is a document, or several: a line that matches `separator` (a regular expression)
    # begins a new one. No batch holds two pairs of one document, so there must be as many documents
    # as a batch has pairs.
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
    c.data.max_tokens_x = 64  # both sides are pieces of one length
    c.data.row_length = 256  # pieces of 40 to 64 tokens leave gaps in short rows
    c.train.batch_pairs = 64
    return c
