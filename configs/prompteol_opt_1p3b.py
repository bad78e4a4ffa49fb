"""PromptEOL on OPT 1.3B."""

from configs import prompteol


def get_config():
    return prompteol.opt('1p3b')
