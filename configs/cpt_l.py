"""cpt-text L: 6B parameters (arXiv 2201.10005, table 1)."""

from ml_collections import ConfigDict

from configs import cpt_s


def get_config() -> ConfigDict:
    c = cpt_s.get_config()
    # Table 1. If the number of devices does not divide it, some slots of the batch stay empty.
    c.train.batch_pairs = 5896
    c.model.width = 4096  # table 1
    c.model.layers = 32  # GPT-3 6.7B, table 2.1 of arXiv 2005.14165
    c.model.heads = 32  # as above
    c.mesh.data = 1
    c.mesh.fsdp = -1
    # The paper starts from a GPT. Public language models of this width: gpt-j-6b, opt-6.7b and
    # pythia-6.9b; docs/models.md has the commands (--config.init_from=models/gpt-j-6b).
    c.init_from = ''
    return c
