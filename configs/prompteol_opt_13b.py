"""PromptEOL on OPT 13B."""

from configs import prompteol


def get_config():
    return prompteol.opt('13b')
