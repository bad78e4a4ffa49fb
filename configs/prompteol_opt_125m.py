"""PromptEOL on OPT 125M."""

from configs import prompteol


def get_config():
    return prompteol.opt('125m')
