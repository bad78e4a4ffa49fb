"""cpt-code M: 1.2B parameters, on (docstring, function) pairs (arXiv 2201.10005, section 3)."""

from ml_collections import ConfigDict

from configs import cpt_m
from configs.cpt_code_s import set_code_pairs


def get_config() -> ConfigDict:
    # The paper starts from Codex. The nearest public model is codegen-2B-mono, which is 2560 wide;
    # docs/models.md has the commands (--config.init_from=models/codegen-2B-mono).
    return set_code_pairs(cpt_m.get_config())
