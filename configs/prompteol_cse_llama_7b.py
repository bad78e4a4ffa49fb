"""PromptEOL + CSE on LLaMA 7B."""

from configs import prompteol, prompteol_cse


def get_config():
    return prompteol_cse.adapted(prompteol.llama('7b'))
