"""PromptEOL + CSE on OPT 1.3B."""

from configs import prompteol, prompteol_cse


def get_config():
    return prompteol_cse.adapted(prompteol.opt('1p3b'))
