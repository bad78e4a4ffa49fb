"""PromptEOL + CSE on OPT 2.7B."""

from configs import prompteol, prompteol_cse


def get_config():
    return prompteol_cse.adapted(prompteol.opt('2p7b'))
