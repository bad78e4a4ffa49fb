"""cpt-text S: 300M parameters, on neighbouring pieces of plain text (arXiv 2201.10005, table 1)."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    # The paper's corpus is "Internet data". Set `path` to a folder of .txt or .md files with one
    # document per file, or set `separator` too.
    c.data.sources = {
        'text': {
            'kind': 'text',
            'weight': 1.0,
            'path': 'data/text',
            'piece_tokens': 254,
            'separator': '',
            'holdout': 0.01,
        }
    }
    c.train.batch_pairs = 12_288  # table 1
    # 500 steps are minutes of cpt_s and hours of cpt_xl, so time bounds what a preemption costs.
    c.checkpoint.every_minutes = 10
    c.model.width = 1024  # table 1
    # GPT-3 Medium, table 2.1 of arXiv 2005.14165. The cpt paper states neither layers nor heads.
    c.model.layers = 24
    c.model.heads = 16  # as above
    # The paper starts from a GPT. Public language models of this width: gpt2-medium, opt-350m and
    # pythia-410m; docs/models.md has the commands (--config.init_from=models/gpt2-medium).
    c.init_from = ''
    return c
