"""PromptEOL + CSE on LLaMA 30B."""

from configs import prompteol, prompteol_cse


def get_config():
    return prompteol_cse.adapted(prompteol.llama('30b'), batch_pairs=200)  # as 13B: the paper does not say
