"""PromptEOL on OPT 2.7B."""

from configs import prompteol


def get_config():
    return prompteol.opt('2p7b')
