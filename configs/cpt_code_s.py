"""cpt-code S: 300M parameters, on (docstring, function) pairs (arXiv 2201.10005, section 3)."""

from ml_collections import ConfigDict

from configs import cpt_s


def set_code_pairs(c: ConfigDict) -> ConfigDict:
    """Replaces the data of a cpt-text config by CodeSearchNet's files, decompressed to .jsonl."""
    c.data.sources = {
        'code': {
            'kind': 'jsonl', 'weight': 1.0, 'path': 'data/code', 'x': 'docstring', 'y': 'code',
            'group': ('repo', 'path'), 'holdout': 0.01,
            'codesearchnet': True,
        }
    }  # fmt: skip
    c.data.max_tokens_x = 128
    c.data.max_tokens_y = 512
    return c


def get_config() -> ConfigDict:
    # The paper starts from Codex. codegen-350M-mono has this width; docs/models.md has the
    # commands (--config.init_from=models/codegen-350M-mono).
    return set_code_pairs(cpt_s.get_config())  # table 1 has the same batch size for text and code
