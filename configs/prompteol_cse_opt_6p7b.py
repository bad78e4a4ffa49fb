"""PromptEOL + CSE on OPT 6.7B."""

from configs import prompteol, prompteol_cse


def get_config():
    return prompteol_cse.adapted(prompteol.opt('6p7b'))
