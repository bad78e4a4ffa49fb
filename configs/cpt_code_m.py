"""cpt-code M: 1.2B parameters, on (docstring, function) pairs (arXiv 2201.10005, section 3)."""

from ml_collections import ConfigDict

from configs import cpt_m
from configs.cpt_code_s import set_code_pairs


def get_config() -> ConfigDict:
    return set_code_pairs(cpt_m.get_config())
