"""PromptEOL + CSE on OPT 13B."""

from configs import prompteol, prompteol_cse


def get_config():
    return prompteol_cse.adapted(prompteol.opt('13b'), batch_pairs=200)  # train_llm.sh: 8 x 25
