"""PromptEOL on OPT 350M."""

from configs import prompteol


def get_config():
    return prompteol.opt('350m')
