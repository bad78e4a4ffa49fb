"""Runs that start from a pretrained model directory."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from flax import nnx
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file, save_file

from cpt_jax.embed.load import load_embedder
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.families.gpt2 import GPT2
from cpt_jax.model.families.write import iterate_tensors
from cpt_jax.plan.lowering import lower_training_step
from cpt_jax.runs.config_file import load_config
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import make_mesh
from cpt_jax.text.prompt_template import Representation
from cpt_jax.text.tokenizer import load_tokenizer
from cpt_jax.training import loop
from cpt_jax.training.setup import set_up
from tests.conftest import sentences
from tests.text.test_pretrained_tokenizer import convert_to_llama2c, train_sentencepiece

pytestmark = pytest.mark.usefixtures('persistent_compilation_cache')

SIZES = {'n_embd': 32, 'n_layer': 2, 'n_head': 4, 'n_positions': 48}


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory) -> Path:
    """A directory like that of save_pretrained, with a GPT-2 of 2 layers and a byte-level BPE."""
    folder = tmp_path_factory.mktemp('gpt2')
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        sentences(200),
        tokenizers.trainers.BpeTrainer(
            vocab_size=300, initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer.add_special_tokens(['<|endoftext|>'])
    tokenizer.save(str(folder / 'tokenizer.json'))
    config = {
        'model_type': 'gpt2',
        'vocab_size': tokenizer.get_vocab_size() + 5,
        'bos_token_id': 0,
        **SIZES,
    }
    (folder / 'config.json').write_text(json.dumps(config))
    encoder_config = EncoderConfig(vocab_size=config['vocab_size'], **GPT2.shape(config))
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        encoder = jax.jit(lambda: Encoder(encoder_config, nnx.Rngs(0)))()
    tensors = {
        name: np.ascontiguousarray(array)
        for name, array in iterate_tensors(GPT2, encoder, config['vocab_size'])
    }
    save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
    return folder


def load_config_from(config_file: Path, folder: Path) -> dict:
    config = load_config(config_file)
    config['init_from'] = str(folder)
    config['optimizer'] |= {'peak_lr': 0.0, 'warmup_steps': 0}
    config['train']['steps'] = 2
    config['evaluation']['every_steps'] = 0
    return config


def test_run_starts_with_the_models_weights_tokenizer_and_architecture(
    config_file, pretrained, tmp_path
):
    """The learning rate is 0, so the final weights are the initial ones. The delimiters have new
    rows of the embedding table, after those of the tokenizer's ids.
    """
    config = load_config_from(config_file, pretrained)
    config['model'] |= {'width': 64, 'layers': 5}  # ignored
    assert loop.train(config, tmp_path / 'run') == 0
    embed = load_embedder(str(tmp_path / 'run'))
    encoder_config = embed.encoder.config
    assert (
        encoder_config.width,
        encoder_config.layers,
        encoder_config.max_length,
        encoder_config.causal,
        encoder_config.pooling,
    ) == (
        32,
        2,
        48,
        True,
        'eos',
    )
    expected = load_file(pretrained / 'model.safetensors')
    ids = tokenizers.Tokenizer.from_file(str(pretrained / 'tokenizer.json')).get_vocab_size()
    found = dict(iterate_tensors(GPT2, embed.encoder, ids + 4))
    assert found.keys() == expected.keys()
    for name, array in found.items():
        rows = ids if name == 'wte.weight' else len(array)
        np.testing.assert_array_equal(array[:rows], expected[name][:rows])
    delimiters = found['wte.weight'][ids:]
    mean = expected['wte.weight'].mean(0)
    np.testing.assert_allclose(delimiters, np.tile(mean, (4, 1)), atol=0.02)
    assert len(np.unique(delimiters, axis=0)) == 4
    assert np.isfinite(embed(['list file', ''], 'x')).all()
    config['train']['steps'] = 3
    assert loop.train(config, tmp_path / 'run') == 0  # resumes


def test_run_starts_from_a_llama2c_file(config_file, tmp_path):
    """The run uses the pieces of tokenizer.bin. All numbers in the model file are weights or tables
    of rotary positions. With model.causal=False, the causal model is trained with bidirectional
    attention.
    """
    folder, random = tmp_path / 'stories', np.random.default_rng(0)
    folder.mkdir()
    header = {
        'width': 16,
        'hidden': 24,
        'layers': 2,
        'heads': 4,
        'kv_heads': 2,
        'vocabulary': 340,
        'length': 48,
    }
    numbers = 340 * 16 + 2 * (2 * 16 + 2 * 16 * 16 + 2 * 8 * 16 + 3 * 24 * 16) + 16 + 48 * 4
    weights = (0.1 * random.normal(size=numbers)).astype(np.float32)
    (folder / 'stories.bin').write_bytes(
        np.array(list(header.values()), np.int32).tobytes() + weights.tobytes()
    )
    (folder / 'tok340.bin').write_bytes(convert_to_llama2c(train_sentencepiece()))
    config = load_config_from(config_file, folder)
    config['model']['init'] = 'gpt2'
    assert set_up(config, tmp_path / 'run').encoder_config.causal
    config['model']['causal'] = False
    assert loop.train(config, tmp_path / 'run') == 0
    embed = load_embedder(str(tmp_path / 'run'))
    encoder_config = embed.encoder.config
    assert (
        encoder_config.width,
        encoder_config.layers,
        encoder_config.vocab_size,
        encoder_config.rotary_pairs,
        encoder_config.tied,
        encoder_config.causal,
    ) == (
        16,
        2,
        344,
        'neighbours',
        True,
        False,
    )
    np.testing.assert_array_equal(
        np.asarray(embed.encoder.token_embedding[...])[:340], weights[: 340 * 16].reshape(340, 16)
    )
    assert np.isfinite(embed(['list file', ''], 'x')).all()


def test_language_model_run_starts_from_the_weights(config_file, pretrained, tmp_path):
    """The run uses the model's end-of-text id. The learning rate is 0, so the final weights are the
    initial ones.
    """
    config = load_config_from(config_file, pretrained) | {'objective': 'lm'}
    config['train']['steps'] = 1
    assert loop.train(config, tmp_path / 'run') == 0
    tokenizer = load_tokenizer(tmp_path / 'run' / 'tokenizer')
    end = tokenizers.Tokenizer.from_file(str(pretrained / 'tokenizer.json')).token_to_id(
        '<|endoftext|>'
    )
    assert tokenizer.bos_and_eos == (end, end)
    params = ocp.load_checkpointables(
        (tmp_path / 'run' / 'checkpoints' / '1').absolute(), {'state': None}
    )['state']['params']
    expected = load_file(pretrained / 'model.safetensors')
    table = np.asarray(params['encoder']['token_embedding'])
    np.testing.assert_array_equal(table[: end + 1], expected['wte.weight'][: end + 1])
    np.testing.assert_array_equal(params['encoder']['position_embedding'], expected['wpe.weight'])


def test_plan_has_the_architecture_of_the_pretrained_model(config_file, pretrained):
    config = load_config_from(config_file, pretrained)
    config['model']['width'] = 64  # ignored
    step = lower_training_step(config, jax.devices(), trace=False)
    ids = tokenizers.Tokenizer.from_file(str(pretrained / 'tokenizer.json')).get_vocab_size()
    assert (
        step.encoder_config.width,
        step.encoder_config.layers,
        step.encoder_config.vocab_size,
    ) == (32, 2, ids + 4)


def test_run_with_a_template_starts_as_the_pretrained_model_with_it(
    config_file, pretrained, tmp_path
):
    """The learning rate is 0. In training, texts are truncated before they are put into the
    template; in evaluation they are not. No delimiter is added.
    """
    template = '"{text}" is:"'
    config = load_config_from(config_file, pretrained)
    # The tokenizer adds no token; the BOS of config.json is 0.
    config['prompt'] |= {'template': template, 'text_tokens': 6, 'begin_token': 'always'}
    config['loss'] |= {'train_temperature': False, 'initial_temperature': 0.05, 'symmetric': False}
    config['data']['negatives'] = 1
    config['train']['log_every'] = 1
    assert loop.train(config, tmp_path / 'run') == 0
    row = json.loads((tmp_path / 'run/metrics.jsonl').read_text().splitlines()[-1])
    assert row['scale'] == pytest.approx(20) and row['dropped_pairs'] == 0
    ours = load_embedder(str(tmp_path / 'run'), representation=Representation(clean=True))
    theirs = load_embedder(
        str(pretrained),
        representation=Representation('prompt', template, clean=True),
        begin_token='always',
    )
    texts = ['list "file"', 'index error string number table model', '']
    np.testing.assert_allclose(ours(texts, 'x'), theirs(texts, 'y'), atol=1e-6)
    same = (
        'template',
        'clean_up',
        'demonstrations',
        'begin',
        'truncation',
        'pooling',
        'max_tokens_x',
    )
    assert {key: ours.settings[key] for key in same} == {key: theirs.settings[key] for key in same}
    assert ours.settings['begin'] == [0] and ours.settings['max_tokens_x'] == 48
    rows = set_up(config, tmp_path / 'run').reader.tokenizer.encode([texts[1]], 'x', 32)[0]
    cut = tokenizers.Tokenizer.from_file(str(pretrained / 'tokenizer.json'))
    assert rows.tolist() == [
        0,
        *cut.encode('"' + cut.decode(cut.encode(texts[1]).ids[:6]) + '" is:"').ids,
    ]
    # The table of the pretrained model has padding rows that no id uses.
    table = load_file(pretrained / 'model.safetensors')['wte.weight']
    np.testing.assert_array_equal(
        np.asarray(ours.encoder.token_embedding[...])[: cut.get_vocab_size() + 4], table[:-1]
    )
    plain = load_embedder(str(tmp_path / 'run'), representation=Representation('mean'))
    assert plain.settings['template'] == '{text}' and plain.encoder.config.pooling == 'mean'


def test_template_needs_a_language_model_and_long_enough_texts(config_file, pretrained, tmp_path):
    config = load_config_from(config_file, pretrained)
    config['prompt']['template'] = 'a {text} b'
    with pytest.raises(UserError, match=r'prompt\.template needs init_from'):
        set_up(config | {'init_from': ''}, tmp_path / 'run')
    with pytest.raises(
        UserError, match=r'unknown config key prompt\.clean: prompt has template, text_tokens'
    ):
        set_up(config | {'prompt': config['prompt'] | {'clean': True}}, tmp_path / 'run')
    config['data']['max_tokens_y'] = 4
    with pytest.raises(UserError, match=r'data\.max_tokens_y=4 must be over \d+ \(the template\)'):
        set_up(config, tmp_path / 'run')


def test_tokenizer_other_than_the_models_is_refused(config_file, pretrained, tmp_path):
    config = load_config_from(config_file, pretrained)
    config['tokenizer']['path'] = 'other.json'
    with pytest.raises(
        UserError,
        match=r'tokenizer\.path=other\.json: a run from init_from=.* uses the tokenizer of that '
        r'model',
    ):
        loop.train(config, tmp_path / 'run')
