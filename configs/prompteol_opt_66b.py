"""PromptEOL on OPT 66B."""

from configs import prompteol


def get_config():
    return prompteol.opt('66b')
