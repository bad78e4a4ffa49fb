"""PromptEOL on LLaMA 30B."""

from configs import prompteol


def get_config():
    return prompteol.llama('30b')
