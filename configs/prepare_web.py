r"""Pairs of neighbouring pieces of English web pages, for launch/prepare.py: WET or WARC files of
Common Crawl, filtered by language and quality, without near duplicates.

Example:
  python launch/prepare.py --config configs/prepare_web.py --output data/web --data_dir data \
      --config.sources.web.path='crawl/*.warc.wet.gz'
"""

from ml_collections import ConfigDict

from configs import prepare_text


def get_config() -> ConfigDict:
    c = prepare_text.get_config()
    c.sources = ConfigDict(
        {
            'web': {
                'reader': 'web', 'path': 'data/web', 'main_content': True,
                'pairs': 'neighbours', 'piece_characters': 1000, 'min_characters': 80,
            }
        }
    )  # fmt: skip
    c.filters.min_characters = 500
    c.filters.max_characters = 100_000
    c.filters.languages = ('en',)
    c.filters.quality = True
    c.duplicates.near = True
    c.output.fields = ('url',)
    c.output.max_bad_share = 0.01  # crawls contain broken records
    return c
