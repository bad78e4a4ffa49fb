"""PromptEOL on LLaMA 13B."""

from configs import prompteol


def get_config():
    return prompteol.llama('13b')
