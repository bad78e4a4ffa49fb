"""cpt-text M: 1.2B parameters (arXiv 2201.10005, table 1)."""

from ml_collections import ConfigDict

from configs import cpt_s


def get_config() -> ConfigDict:
    c = cpt_s.get_config()
    c.train.batch_pairs = 6912  # table 1
    c.model.width = 2048  # table 1
    c.model.layers = 24  # GPT-3 XL, table 2.1 of arXiv 2005.14165
    # Heads of dimension 128 as in that table. Its 24 heads would be wider than the model.
    c.model.heads = 16
    c.mesh.fsdp = 8
    # The paper starts from a GPT. Public language models of this width: opt-1.3b and pythia-1.4b;
    # docs/models.md has the commands (--config.init_from=models/opt-1.3b).
    c.init_from = ''
    return c
