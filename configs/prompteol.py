r"""PromptEOL (arXiv 2307.16645) on OPT and LLaMA: contrastive fine-tuning of all parameters on NLI.

Texts are enclosed in a template instead of delimiters.

Example:
  python launch/train.py --config configs/prompteol.py:opt-13b \
      --config.init_from=$HOME/opt-13b

The argument is the model's name and size; default opt-2.7b. Set `init_from` to the directory of the
model; its architecture then replaces the `model` section. The section is set here so that
launch/plan.py works without the weights.

The fine-tuning of the paper, with LoRA, is configs/prompteol_cse.py. PromptEOL without fine-tuning
needs no config:

  python launch/evaluate.py --model ~/opt-2.7b --representation prompteol --tasks 'sts/*' \
      --data_dir ~/data
"""

from ml_collections import ConfigDict

from configs import base

# Width, layers, heads of facebook/opt-*. opt-350m also has norms after each half of a layer and
# token embeddings of dimension 512; both are read from its directory.
OPT = {
    'opt-125m': (768, 12, 12),
    'opt-350m': (1024, 24, 16),
    'opt-1.3b': (2048, 24, 32),
    'opt-2.7b': (2560, 32, 32),
    'opt-6.7b': (4096, 32, 32),
    'opt-13b': (5120, 40, 40),
    'opt-30b': (7168, 48, 56),
    'opt-66b': (9216, 64, 72),
}
# Width, layers, heads, feed-forward dimension of LLaMA, from table 2 of arXiv 2302.13971 and the
# published weights.
LLAMA = {
    'llama-7b': (4096, 32, 32, 11_008),
    'llama-13b': (5120, 40, 40, 13_824),
    'llama-30b': (6656, 60, 52, 17_920),
    'llama-65b': (8192, 80, 64, 22_016),
}
ARGUMENTS = (*OPT, *LLAMA)


def get_config(model: str = 'opt-2.7b') -> ConfigDict:
    return make_opt_config(model) if model in OPT else make_llama_config(model)


def make_opt_config(model: str) -> ConfigDict:
    """Returns the config of an OPT model."""
    c = _make_shared_config()
    c.tokenizer.vocab_size = 50_276  # including the four delimiters, which no text contains
    c.model.width, c.model.layers, c.model.heads = OPT[model]
    c.model.activation = 'relu'
    return c


def make_llama_config(model: str) -> ConfigDict:
    """Returns the config of a LLaMA model."""
    c = _make_shared_config()
    c.tokenizer.vocab_size = 32_004  # including the delimiters
    c.model.width, c.model.layers, c.model.heads, c.model.hidden = LLAMA[model]
    c.model.positions = 'rotary'
    c.model.norm = 'rmsnorm'
    c.model.norm_epsilon = 1e-6
    c.model.activation = 'swiglu'
    c.model.bias = False
    return c


def make_stories_config() -> ConfigDict:
    """Returns the config of stories260K (configs/prompteol_cse_tiny.py)."""
    c = _make_shared_config()
    c.tokenizer.vocab_size = 516  # including the delimiters
    c.model.width = 64
    c.model.layers = 5
    c.model.heads = 8
    c.model.kv_heads = 4
    c.model.hidden = 172
    c.model.positions = 'rotary'
    c.model.norm = 'rmsnorm'
    c.model.activation = 'swiglu'
    c.model.bias = False
    return c


def _make_shared_config() -> ConfigDict:
    """Returns the settings that all models share.

    They are from ft_llm.py and train_llm.sh of kongds/scaling_sentemb, except for the learning
    rate, which is SimCSE's.
    """
    c = base.get_config()
    c.seed = 42
    c.prompt.template = 'This sentence : "{text}" means in one word:"'
    c.prompt.text_tokens = 32
    # nli_for_simcse.csv of princeton-nlp/datasets-for-simcse has 275,601 rows of sent0, sent1 and
    # hard_neg.
    c.data.sources = {'nli': {'kind': 'csv', 'weight': 1.0, 'path': 'data/nli_for_simcse.csv'}}
    c.data.negatives = 1
    c.data.max_tokens_x = 64  # 32 tokens and the template are 43 with OPT's tokenizer
    c.data.max_tokens_y = 64
    c.loss.initial_temperature = 0.05  # value in the code; the paper has 0.5
    c.loss.train_temperature = False
    c.loss.symmetric = False
    c.optimizer.peak_lr = 1e-5  # SimCSE's value for large models
    c.optimizer.warmup_steps = 100
    c.optimizer.decay = 'linear'
    c.optimizer.final_share = 0.0
    c.optimizer.weight_decay = 0.0
    c.optimizer.b2 = 0.999
    c.train.batch_pairs = 256
    c.train.steps = 1076  # one epoch
    # The best checkpoint is selected on STS-B dev: launch/evaluate.py --tasks sts/STSBenchmark
    # --split dev.
    c.evaluation.every_steps = 0
    c.checkpoint.every_steps = 50
    c.checkpoint.keep_every = 50
    c.mesh.data = 1
    c.mesh.fsdp = -1
    return c
