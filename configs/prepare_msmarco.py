r"""(query, relevant passage) pairs of MS MARCO's training split, for launch/prepare.py.

The folder has collection.tsv, queries.train.tsv and qrels.train.tsv of MS MARCO, or BEIR's form:
corpus.jsonl, queries.jsonl and qrels/train.tsv, as any other collection of BEIR with a training
split. docs/data.md lists the readers of other supervised sets.

Example:
  python launch/prepare.py --config configs/prepare_msmarco.py --output data/msmarco_pairs \
      --config.sources.msmarco.path=data/msmarco --data_dir data
"""

from ml_collections import ConfigDict

from configs import prepare_text


def get_config() -> ConfigDict:
    c = prepare_text.get_config()
    c.sources = ConfigDict(
        {
            'msmarco': {
                'reader': 'beir', 'path': 'data/msmarco', 'split': 'train', 'pairs': 'fields',
            }
        }
    )  # fmt: skip
    # The passages of a collection belong to its training queries too.
    c.decontamination.documents = False
    return c
