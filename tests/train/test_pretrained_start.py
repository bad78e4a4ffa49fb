"""Runs that start from a pretrained directory."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from flax import nnx
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file, save_file

from cpt_jax.embed import load_embedder
from cpt_jax.errors import UserError
from cpt_jax.mesh import make_mesh
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.families.gpt2 import GPT2
from cpt_jax.model.families.load import written
from cpt_jax.model.shape import Shape
from cpt_jax.plan.lowering import lower
from cpt_jax.program import load_config
from cpt_jax.tokenizer import load_tokenizer
from cpt_jax.train import loop
from tests.conftest import sentences
from tests.test_pretrained_tokenizer import as_llama2c, trained_pieces

SIZES = {'n_embd': 32, 'n_layer': 2, 'n_head': 4, 'n_positions': 48}


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory) -> Path:
    """A GPT-2 of 2 layers with a byte-level BPE, as save_pretrained would leave it."""
    folder = tmp_path_factory.mktemp('gpt2')
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(sentences(200), tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    made.add_special_tokens(['<|endoftext|>'])
    made.save(str(folder / 'tokenizer.json'))
    config = {'model_type': 'gpt2', 'vocab_size': made.get_vocab_size() + 5, **SIZES}
    (folder / 'config.json').write_text(json.dumps(config))
    shape = Shape(vocab_size=config['vocab_size'], **GPT2.shape(config))
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        encoder = jax.jit(lambda: Encoder(shape, nnx.Rngs(0)))()
    tensors = {name: np.ascontiguousarray(array) for name, array in written(GPT2, encoder, config['vocab_size'])}
    save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
    return folder


def config_from(config_file: Path, folder: Path) -> dict:
    config = load_config(config_file)
    config['init_from'] = str(folder)
    config['optimizer'] |= {'peak_lr': 0.0, 'warmup_steps': 0}
    config['train']['steps'] = 2
    config['evaluation']['every_steps'] = 0
    return config


def test_a_run_starts_with_the_weights_the_ids_and_the_architecture(config_file, pretrained, tmp_path):
    """At a learning rate of 0 they are what it ends with; the delimiters are rows of their own behind the tokenizer's ids."""
    config = config_from(config_file, pretrained)
    config['model']['width'], config['model']['layers'] = 64, 5  # which do not count
    assert loop.train(config, tmp_path / 'run') == 0
    embed = load_embedder(str(tmp_path / 'run'))
    shape = embed.encoder.shape
    assert (shape.width, shape.layers, shape.max_length, shape.causal, shape.pooling) == (32, 2, 48, True, 'eos')
    there = load_file(pretrained / 'model.safetensors')
    ids = tokenizers.Tokenizer.from_file(str(pretrained / 'tokenizer.json')).get_vocab_size()
    found = dict(written(GPT2, embed.encoder, ids + 4))
    assert found.keys() == there.keys()
    for name, array in found.items():
        rows = ids if name == 'wte.weight' else len(array)
        np.testing.assert_array_equal(array[:rows], there[name][:rows])
    delimiters = found['wte.weight'][ids:]
    np.testing.assert_allclose(delimiters, np.tile(there['wte.weight'].mean(0), (4, 1)), atol=0.02)
    assert len(np.unique(delimiters, axis=0)) == 4
    assert np.isfinite(embed(['list file', ''], 'x')).all()
    config['train']['steps'] = 3
    assert loop.train(config, tmp_path / 'run') == 0  # and goes on


def test_a_run_starts_from_a_file_of_llama2c(config_file, tmp_path):
    """With the pieces of its tokenizer.bin; every number of the file is a weight or a table of rotary positions."""
    folder, random = tmp_path / 'stories', np.random.default_rng(0)
    folder.mkdir()
    header = {'width': 16, 'hidden': 24, 'layers': 2, 'heads': 4, 'kv_heads': 2, 'vocabulary': 340, 'length': 48}
    numbers = 340 * 16 + 2 * (2 * 16 + 2 * 16 * 16 + 2 * 8 * 16 + 3 * 24 * 16) + 16 + 48 * 4
    weights = (0.1 * random.normal(size=numbers)).astype(np.float32)
    (folder / 'stories.bin').write_bytes(np.array(list(header.values()), np.int32).tobytes() + weights.tobytes())
    (folder / 'tok340.bin').write_bytes(as_llama2c(trained_pieces()))
    config = config_from(config_file, folder)
    config['model']['init'] = 'gpt2'
    assert loop.train(config, tmp_path / 'run') == 0
    embed = load_embedder(str(tmp_path / 'run'))
    shape = embed.encoder.shape
    assert (shape.width, shape.layers, shape.vocab_size, shape.rotary_pairs, shape.tied) == (16, 2, 344, 'neighbours', True)
    np.testing.assert_array_equal(np.asarray(embed.encoder.token_embedding[...])[:340], weights[: 340 * 16].reshape(340, 16))
    assert np.isfinite(embed(['list file', ''], 'x')).all()


def test_a_causal_model_may_train_to_see_the_whole_text(config_file, pretrained, tmp_path):
    config = config_from(config_file, pretrained)
    config['model']['causal'] = False
    assert loop.train(config, tmp_path / 'run') == 0
    assert not load_embedder(str(tmp_path / 'run')).encoder.shape.causal


def test_a_language_model_goes_on_from_the_weights(config_file, pretrained, tmp_path):
    """With the id that ends its texts; at a learning rate of 0 they are what it ends with."""
    config = config_from(config_file, pretrained) | {'objective': 'lm'}
    config['train']['steps'] = 1
    assert loop.train(config, tmp_path / 'run') == 0
    tokenizer = load_tokenizer(tmp_path / 'run' / 'tokenizer')
    end = tokenizers.Tokenizer.from_file(str(pretrained / 'tokenizer.json')).token_to_id('<|endoftext|>')
    assert tokenizer.boundaries == (end, end)
    params = ocp.load_checkpointables((tmp_path / 'run' / 'checkpoints' / '1').absolute(), {'state': None})['state']['params']
    there = load_file(pretrained / 'model.safetensors')
    np.testing.assert_array_equal(params['encoder']['token_embedding'][: end + 1], there['wte.weight'][: end + 1])
    np.testing.assert_array_equal(params['encoder']['position_embedding'], there['wpe.weight'])


def test_a_plan_is_of_the_same_model(config_file, pretrained):
    config = config_from(config_file, pretrained)
    config['model']['width'] = 64  # which does not count
    step = lower(config, jax.devices(), trace=False)
    ids = tokenizers.Tokenizer.from_file(str(pretrained / 'tokenizer.json')).get_vocab_size()
    assert (step.shape.width, step.shape.layers, step.shape.vocab_size) == (32, 2, ids + 4)


def test_another_tokenizer_is_refused(config_file, pretrained, tmp_path):
    config = config_from(config_file, pretrained)
    config['tokenizer']['path'] = 'other.json'
    with pytest.raises(UserError, match=r'tokenizer\.path=other\.json: a run from init_from=.* has the tokenizer of that model'):
        loop.train(config, tmp_path / 'run')
