"""PromptEOL on OPT 30B."""

from configs import prompteol


def get_config():
    return prompteol.opt('30b')
