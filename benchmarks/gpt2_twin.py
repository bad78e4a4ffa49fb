"""The same model in torch: an Encoder's weights in transformers' GPT2Model, wrapped as a user of sentence-transformers would have it.

The twin wraps every text in the delimiters of y. One that took x for its own would need a second tokenizer, and do the same work.
"""

from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
import tokenizers
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from cpt_jax.model.encoder import Block, Encoder
from cpt_jax.model.shape import Shape
from cpt_jax.tokenizer import DELIMITERS, Tokenizer

transformers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()


def train_bpe(texts: Iterable[str], vocab_size: int, path: Path) -> None:
    """Trains a byte-level BPE, GPT-2's kind, and writes it as a tokenizer.json that both sides load; the delimiters come on top."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    size = vocab_size - len(DELIMITERS)
    bpe.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False))
    bpe.save(str(path))


def save_twin(encoder: Encoder, tokenizer: Tokenizer, max_tokens: int, folder: Path) -> None:
    """Writes a directory that `SentenceTransformer` loads: transformer, state at the last token, unit length."""
    model = transformers.GPT2Model(gpt2_config(encoder.shape))
    model.load_state_dict({name: torch.from_numpy(np.array(array, np.float32)) for name, array in gpt2_weights(encoder).items()})
    model.save_pretrained(folder / 'gpt2')
    fast_tokenizer(tokenizer, max_tokens).save_pretrained(folder / 'gpt2')
    transformer = Transformer(str(folder / 'gpt2'), max_seq_length=max_tokens)
    SentenceTransformer(modules=[transformer, Pooling(encoder.shape.width, 'lasttoken'), Normalize()], device='cpu').save(str(folder))


def load_twin(folder: Path, threads: int) -> SentenceTransformer:
    """The twin as it is fastest on a CPU in float32: a thread a core, fused attention."""
    torch.set_num_threads(threads)
    return SentenceTransformer(str(folder), device='cpu', model_kwargs={'attn_implementation': 'sdpa', 'dtype': 'float32'})


def gpt2_config(shape: Shape) -> transformers.GPT2Config:
    """GPT-2's of our shape. 'gelu_pytorch_tanh' computes what GPT-2's own 'gelu_new' does, in one call and not in eight."""
    return transformers.GPT2Config(
        vocab_size=shape.table_rows, n_positions=shape.max_length, n_embd=shape.width, n_layer=shape.layers, n_head=shape.heads,
        n_inner=shape.hidden, activation_function='gelu_pytorch_tanh', layer_norm_epsilon=shape.norm_epsilon, use_cache=False,
        embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip


def gpt2_weights(encoder: Encoder) -> dict[str, np.ndarray]:
    """{name in GPT2Model: weight}; its Conv1D layers hold [in, out]."""
    named = {
        'wte.weight': encoder.token_embedding,
        'wpe.weight': encoder.position_embedding,
        'ln_f.weight': encoder.final_norm.scale,
        'ln_f.bias': encoder.final_norm.bias,
    }
    weights = {name: np.asarray(parameter[...]) for name, parameter in named.items()}
    inner = [jax.tree.map(lambda w, n=n: w[n], encoder.blocks) for n in range(encoder.shape.layers - 1)]
    for number, block in enumerate([*inner, encoder.last]):
        weights |= {f'h.{number}.{name}': array for name, array in _layer(block).items()}
    return weights


def _layer(block: Block) -> dict[str, np.ndarray]:
    attention, forward = block.attention, block.feed_forward
    width = block.shape.width
    joined = [np.asarray(getattr(attention, name)[...]).reshape(width, -1) for name in ('query', 'key', 'value')]
    biases = [np.asarray(getattr(attention, f'{name}_bias')[...]).reshape(-1) for name in ('query', 'key', 'value')]
    named = {
        'ln_1.weight': block.attention_norm.scale,
        'ln_1.bias': block.attention_norm.bias,
        'ln_2.weight': block.feed_forward_norm.scale,
        'ln_2.bias': block.feed_forward_norm.bias,
        'attn.c_proj.bias': attention.out_bias,
        'mlp.c_fc.weight': forward.up,
        'mlp.c_fc.bias': forward.up_bias,
        'mlp.c_proj.weight': forward.down,
        'mlp.c_proj.bias': forward.down_bias,
    }
    return {name: np.asarray(parameter[...]) for name, parameter in named.items()} | {
        'attn.c_attn.weight': np.concatenate(joined, 1),
        'attn.c_attn.bias': np.concatenate(biases),
        'attn.c_proj.weight': np.asarray(attention.out[...]).reshape(-1, width),
    }


def fast_tokenizer(tokenizer: Tokenizer, max_tokens: int) -> transformers.PreTrainedTokenizerFast:
    """Gives the ids of `Tokenizer.encode(texts, 'y', max_tokens)`: cut before the delimiters go around it; padded on the right."""
    model = tokenizers.Tokenizer.from_buffer(tokenizer.file[1])
    names = [f'<delimiter{sign}>' for sign in DELIMITERS]
    model.add_special_tokens(names)
    opening, closing = names[2:]
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single=f'{opening} $A {closing}', special_tokens=list(zip((opening, closing), tokenizer.delimiters('y'), strict=True))
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token=closing,
        eos_token=closing,
        model_max_length=max_tokens,
        padding_side='right',
        truncation_side='right',
    )
