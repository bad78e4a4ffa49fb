"""cpt-text XL: 175B parameters (arXiv 2201.10005, table 1)."""

from ml_collections import ConfigDict

from configs import cpt_s


def get_config() -> ConfigDict:
    c = cpt_s.get_config()
    # Table 1. If the number of devices does not divide it, some slots of the batch stay empty.
    c.train.batch_pairs = 4976
    c.model.width = 12_288  # table 1
    c.model.layers = 96  # GPT-3 175B, table 2.1 of arXiv 2005.14165
    c.model.heads = 96  # as above
    c.mesh.data = 1
    c.mesh.fsdp = -1
    # The paper starts from a GPT. No public language model of this width can be downloaded.
    c.init_from = ''
    return c
