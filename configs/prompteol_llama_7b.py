"""PromptEOL on LLaMA 7B."""

from configs import prompteol


def get_config():
    return prompteol.llama('7b')
