"""The twin of an Encoder in torch: its weights in transformers' GPT2Model, as a model of
sentence-transformers.

The twin wraps every text in the delimiters of y. Delimiters of x would need a second tokenizer for
the same amount of work.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
import torch
import transformers
from sentence_transformers import SentenceTransformer

from cpt_jax.exporting.sentence_transformers import write_layout
from cpt_jax.exporting.tokenizer import export_tokenizer
from cpt_jax.exporting.transformer import make_config_json, write_weights
from cpt_jax.model.encoder import Encoder
from cpt_jax.text.tokenizer import DELIMITERS, Tokenizer

transformers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()


def train_bpe(texts: Iterable[str], vocab_size: int, path: Path) -> None:
    """Trains a byte-level BPE as in GPT-2, and writes it as a tokenizer.json that both sides load.

    Args:
      texts: texts to train on.
      vocab_size: vocabulary size, including the delimiters, which are added later.
      path: path of tokenizer.json.
    """
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - len(DELIMITERS), initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.save(str(path))


def save_twin(encoder: Encoder, tokenizer: Tokenizer, max_tokens: int, folder: Path) -> None:
    """Writes a directory that `SentenceTransformer` loads, for side y, as in launch/export.py."""
    folder.mkdir(parents=True, exist_ok=True)
    family, config = make_config_json(encoder.config, None, 'float32')
    text = export_tokenizer(tokenizer, 'y')
    # The same function as GPT-2's 'gelu_new', in one call of torch instead of eight.
    config |= text.ids | {'activation_function': 'gelu_pytorch_tanh'}
    (folder / 'config.json').write_text(json.dumps(config))
    write_weights(family, encoder, tokenizer.vocab_size, folder, 'float32', 10**12)
    write_layout(folder, text, encoder.config, max_tokens)


def load_twin(folder: Path, threads: int) -> SentenceTransformer:
    """Returns the twin with the fastest settings on a CPU in float32: `threads` threads (one per
    core) and fused attention.
    """
    torch.set_num_threads(threads)
    return SentenceTransformer(
        str(folder), device='cpu', model_kwargs={'attn_implementation': 'sdpa', 'dtype': 'float32'}
    )
