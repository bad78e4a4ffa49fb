"""The same model in torch: an Encoder's weights in transformers' GPT2Model, wrapped as a user of
sentence-transformers would have it.

The twin wraps every text in the delimiters of y. One that took x for its own would need a second
tokenizer, and do the same work.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
import torch
import transformers
from sentence_transformers import SentenceTransformer

from cpt_jax.exporting.sentence_transformers import write_layout
from cpt_jax.exporting.tokenizer import exported
from cpt_jax.exporting.transformer import config_json, write_weights
from cpt_jax.model.encoder import Encoder
from cpt_jax.text.tokenizer import DELIMITERS, Tokenizer

transformers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()


def train_bpe(texts: Iterable[str], vocab_size: int, path: Path) -> None:
    """Trains a byte-level BPE, GPT-2's kind, and writes it as a tokenizer.json that both sides
    load; the delimiters come on top.
    """
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    size = vocab_size - len(DELIMITERS)
    bpe.train_from_iterator(
        texts,
        tokenizers.trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=alphabet, show_progress=False
        ),
    )
    bpe.save(str(path))


def save_twin(encoder: Encoder, tokenizer: Tokenizer, max_tokens: int, folder: Path) -> None:
    """Writes a directory that `SentenceTransformer` loads, as launch/export.py does, for the side
    y.
    """
    folder.mkdir(parents=True, exist_ok=True)
    family, config = config_json(encoder.config, None, 'float32')
    text = exported(tokenizer, 'y')
    # It computes what GPT-2's own 'gelu_new' does, in one call of torch and not in eight.
    config |= text.ids | {'activation_function': 'gelu_pytorch_tanh'}
    (folder / 'config.json').write_text(json.dumps(config))
    write_weights(family, encoder, tokenizer.vocab_size, folder, 'float32', 10**12)
    write_layout(folder, text, encoder.config.embedding_width, max_tokens)


def load_twin(folder: Path, threads: int) -> SentenceTransformer:
    """The twin as it is fastest on a CPU in float32: a thread a core, fused attention."""
    torch.set_num_threads(threads)
    return SentenceTransformer(
        str(folder), device='cpu', model_kwargs={'attn_implementation': 'sdpa', 'dtype': 'float32'}
    )
