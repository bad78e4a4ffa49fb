"""PromptEOL on OPT 6.7B."""

from configs import prompteol


def get_config():
    return prompteol.opt('6p7b')
