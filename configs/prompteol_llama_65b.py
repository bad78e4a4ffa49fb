"""PromptEOL on LLaMA 65B."""

from configs import prompteol


def get_config():
    return prompteol.llama('65b')
