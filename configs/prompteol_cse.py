r"""PromptEOL + CSE (arXiv 2307.16645): fine-tuning on NLI triples with LoRA and a 4-bit base.

Example:
  python launch/train.py --config configs/prompteol_cse.py:opt-2.7b \
      --config.init_from=$HOME/opt-2.7b

The argument is the model's name and size; default opt-2.7b.
"""

from ml_collections import ConfigDict

from configs import prompteol

# Pairs in a batch, from train_llm.sh. For LLaMA 30B no value is published; the one of 13B is used.
BATCH_PAIRS = {
    'opt-1.3b': 256,
    'opt-2.7b': 256,
    'opt-6.7b': 256,
    'opt-13b': 200,  # 8 x 25
    'llama-7b': 256,
    'llama-13b': 200,  # 8 x 25
    'llama-30b': 200,
}
ARGUMENTS = tuple(BATCH_PAIRS)


def get_config(model: str = 'opt-2.7b') -> ConfigDict:
    c = prompteol.get_config(model)
    # The paper's adapters, learning rate and precision.
    c.lora.rank = 64
    c.lora.alpha = 16.0
    c.lora.dropout = 0.05
    c.lora.base = 'nf4'
    c.optimizer.peak_lr = 5e-4
    c.model.dtype = 'float32'
    c.train.batch_pairs = BATCH_PAIRS[model]
    c.train.steps = 275_601 // BATCH_PAIRS[model]  # one epoch
    return c
