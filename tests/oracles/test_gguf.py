"""GGUF files have the states and ids of transformers' reader of GGUF files."""

import argparse
import inspect
import logging
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from tokenizers import pre_tokenizers
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.families.known import find_family
from cpt_jax.model.families.load import load_encoder
from cpt_jax.model.formats.gguf_file import GgufFile
from cpt_jax.origin.pretrained import open_pretrained
from cpt_jax.runtime.mesh import make_mesh
from cpt_jax.text.gguf_tokenizer import RULES
from tests.model.formats.gguf_inputs import convert_to_gguf
from tests.oracles.real_models import find_real_model

VOCABULARY = 50
# Widths of heads that transformers assumes, because it does not read them.
HEAD_WIDTHS = {'llama': 32, 'qwen2': 32, 'qwen3': 128, 'gemma3_text': 256}


def write_model(folder: Path, kind: str) -> Path:
    """Writes a small model with random weights, as transformers does and as a GGUF file."""
    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=VOCABULARY,
        num_hidden_layers=7,  # Gemma 3 has 5 local layers before each full one
        max_position_embeddings=64,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=HEAD_WIDTHS[kind],
        sliding_window=4,
        initializer_range=0.3,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith(('norm.weight', 'bias')):
            torch.nn.init.normal_(parameter, 0.5, 0.3)
    model.save_pretrained(folder)
    architecture = kind.removesuffix('_text')
    # transformers takes it from the tokenizer otherwise.
    metadata = {f'{architecture}.vocab_size': VOCABULARY}
    return convert_to_gguf(folder, folder / 'model.gguf', metadata=metadata)


def compute_ours(path: Path, texts: list[list[int]]) -> list[np.ndarray]:
    """Returns our states of each text, float32[length, D]."""
    file = GgufFile(path)
    family = find_family(file.config)
    config = EncoderConfig(
        vocab_size=file.config['vocab_size'], dtype='float32', **family.shape(file.config)
    ).resolve_auto('cpu')
    mesh = make_mesh(devices=jax.devices()[:1])
    encoder = load_encoder(family, file, config, mesh)
    length = max(map(len, texts))
    tokens = np.array([text + [0] * (length - len(text)) for text in texts], np.int32)
    lengths = np.array([[len(text)] for text in texts])
    positions = np.tile(np.arange(length, dtype=np.int32), (len(texts), 1))
    segments = (positions < lengths).astype(np.int32)
    with jax.set_mesh(mesh):
        found = jax.jit(Encoder.compute_token_states)(encoder, tokens, segments, positions)
        return [states[: len(text)] for states, text in zip(np.asarray(found), texts, strict=True)]


def compute_theirs(path: Path, texts: list[list[int]]) -> list[np.ndarray]:
    """Returns the states of transformers for each text, float32[length, D]."""
    model = transformers.AutoModel.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        return [model(torch.tensor([text])).last_hidden_state[0].numpy() for text in texts]


def check_states(path: Path, texts: list[list[int]]) -> list[np.ndarray]:
    """Compares states, relative to the largest one: real models have states of up to 70.

    Returns:
      Our states of each text.
    """
    ours, theirs = compute_ours(path, texts), compute_theirs(path, texts)
    scale = max(1, max(np.abs(states).max() for states in theirs))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine / scale, other / scale, atol=1e-4)
    return ours


@pytest.mark.parametrize('kind', HEAD_WIDTHS)
def test_small_model_has_the_states_of_transformers(tmp_path, kind):
    random = np.random.default_rng(1)
    texts = [random.integers(0, VOCABULARY, size).tolist() for size in (12, 1, 7)]
    path = write_model(tmp_path, kind)
    model = transformers.AutoModel.from_pretrained(tmp_path)
    for text, states in zip(texts, check_states(path, texts), strict=True):
        with torch.no_grad():
            original = model(torch.tensor([text])).last_hidden_state[0].numpy()
        np.testing.assert_allclose(states, original, atol=1e-4)


def test_patterns_are_those_of_transformers():
    shared = RULES.keys() & GGUF_PRE_TOKENIZER_SPLITS.keys()
    assert len(shared) > 10
    for name in shared:
        assert RULES[name].pattern == GGUF_PRE_TOKENIZER_SPLITS[name]


def list_texts() -> list[str]:
    """Returns texts of the standard library, and some with what tokenizers treat differently."""
    docs = [
        inspect.getdoc(value)
        for module in (argparse, logging, subprocess)
        for _, value in sorted(vars(module).items())
    ]
    awkward = ['  a', '', 'a  The', '2024   12', 'x\n\n\ny', '<|im_start|>user\nhi', '<table><tr>']
    awkward += ['日本語 🙂👩‍👧', '\t\t\tx', 'a' + ' ' * 40 + 'b', '½ ﬁ é', '<start_of_turn>user\n']
    return [*dict.fromkeys(doc for doc in docs if doc), *awkward]


@pytest.mark.parametrize('name', ['smollm2-135m-instruct', 'gemma-3-270m'])
def test_real_model_has_the_ids_and_states_of_transformers(name):
    path = find_real_model(name)
    model = open_pretrained(str(path))
    texts = list_texts()
    theirs = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    if name.startswith('smollm2'):
        # As in SmolLM2's own tokenizer.json. transformers does not know this rule.
        theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
        )
    found = [ids.tolist() for ids in model.tokenizer.encode(texts, 'x', 1 << 20)]
    expected = theirs(texts)['input_ids']
    for text, ours, other in zip(texts, found, expected, strict=True):
        assert ours == (other or [model.config['eos_token_id']]), text
    check_states(path, [ids[:100] for ids in found[::40] if ids])
