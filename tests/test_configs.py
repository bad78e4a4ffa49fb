"""Every file in configs/ is a config of this code, and the paper's models have the paper's
sizes.
"""

import importlib
import inspect
import io
import math
import re
import tokenize
from pathlib import Path

import jax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

import configs
from cpt_jax.data.mixture import KINDS, source_functions
from cpt_jax.loss.infonce import InfoNCE
from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.runs.checkpoint import Checkpoints
from cpt_jax.runs.config import as_json, build, check_resume, fill_missing, flatten
from cpt_jax.runs.config_file import load_config
from cpt_jax.runtime.mesh import AXES, batch_shards, make_mesh
from cpt_jax.text.prompt_template import PROMPTEOL, Prompt, configured
from cpt_jax.text.tokenizer import train_tokenizer
from cpt_jax.training.optimizer import make_optimizer
from cpt_jax.training.sections import FUNCTIONS, Data, Evaluation, Train

FOLDER = Path(__file__).parents[1] / 'configs'


def names(folder: Path) -> list[str]:
    """'FILE' of each config, or 'FILE:ARGUMENT' for each argument of those that take one."""
    found = []
    for path in sorted(folder.glob('[a-z]*.py')):
        arguments = importlib.import_module(f'configs.{path.stem}').__dict__.get('ARGUMENTS', ())
        found += [f'{path.stem}:{argument}' for argument in arguments] or [path.stem]
    return found


CONFIGS = names(FOLDER)

# What comes with a pretrained family (model/families) and is not a config's to choose.
OF_FAMILIES = (
    'pooling', 'position_offset', 'rotary_base', 'rotary_scaling', 'rotary_width', 'rotary_pairs',
    'norm_place', 'norm_bias',
    'norm_from_one', 'first_norm', 'parallel', 'qkv_bias', 'out_bias', 'query_key_norm',
    'attention_width', 'local_layers', 'window',
    'local_rotary_base', 'local_rotary_scaling', 'final_norm', 'embedding_norm', 'embedding_width',
    'embedding_scale', 'token_types',
    'tied',
)  # fmt: skip
# Whose keyword arguments a section is, and which of them are not the config's.
BUILDERS = {
    'prompt': (Prompt, ('demonstrations', 'clean')),
    'data': (Data, ()),
    'model': (EncoderConfig, ('vocab_size', *OF_FAMILIES)),
    'lora': (LoRA, ()),
    'mesh': (make_mesh, ('devices',)),
    'loss': (InfoNCE, ()),
    'optimizer': (make_optimizer, ('steps',)),
    'train': (Train, ()),
    'evaluation': (Evaluation, ()),
    'checkpoint': (Checkpoints, ('directory', 'tokenizer_file', 'about')),
}
# Table 1 of arXiv 2201.10005: parameters, batch.
TABLE = {
    'cpt_s': (300e6, 12_288), 'cpt_m': (1.2e9, 6912), 'cpt_l': (6e9, 5896), 'cpt_xl': (175e9, 4976),
    'cpt_code_s': (300e6, 12_288), 'cpt_code_m': (1.2e9, 6912),
}  # fmt: skip


def load(name: str) -> dict:
    """Of 'FILE' or 'FILE:ARGUMENT'."""
    file, colon, argument = name.partition(':')
    return load_config(f'{FOLDER}/{file}.py{colon}{argument}')


def pod(mesh: dict, devices: int = 64) -> AbstractMesh:
    """A config's mesh on more devices than there are here."""
    left = devices // math.prod(size for size in mesh.values() if size != -1)
    return AbstractMesh(
        tuple(left if mesh[axis] == -1 else mesh[axis] for axis in AXES),
        AXES,
        (AxisType.Explicit,) * 3,
    )


@pytest.mark.parametrize('name', CONFIGS)
def test_every_section_is_the_arguments_of_its_function(name):
    config = load(name)
    assert config.keys() == {*FUNCTIONS, 'objective', 'seed', 'init_from'}
    assert set(FUNCTIONS) == {*BUILDERS, 'tokenizer'}
    for section, (function, given) in BUILDERS.items():
        assert config[section].keys() == inspect.signature(function).parameters.keys() - set(
            given
        ), section
    assert config['tokenizer'].keys() == inspect.signature(train_tokenizer).parameters.keys() - {
        'texts',
        'seed',
        'boundaries',
    } | {'path'}
    for source in config['data']['sources'].values():
        known = inspect.signature(KINDS[source['kind']]).parameters
        required = {
            key for key, parameter in known.items() if parameter.default is inspect.Parameter.empty
        }
        assert (
            required - {'split', 'tokenizer'}
            <= source.keys() - {'kind', 'weight'}
            <= known.keys() - {'split', 'tokenizer'}
        )


@pytest.mark.parametrize('name', CONFIGS)
def test_the_values_of_a_config_go_together(name):
    """What a run checks before it reads its data."""
    config = load(name)
    train, data = build(Train, 'train', config['train']), build(Data, 'data', config['data'])
    configured(config['prompt'])
    build(InfoNCE, 'loss', config['loss']).check_width(config['model']['width'])
    build(make_optimizer, 'optimizer', config['optimizer'], steps=train.steps)
    encoder_config = build(
        EncoderConfig, 'model', config['model'], vocab_size=config['tokenizer']['vocab_size']
    )
    assert max(data.max_tokens_x, data.max_tokens_y) <= min(
        data.row_length, encoder_config.max_length
    )
    mesh = pod(config['mesh'], 8 if name == 'lm_tiny' else 64)  # that one is for a laptop
    assert train.batch_pairs >= batch_shards(mesh) * train.encode_chunks
    assert dict(flatten(as_json(config))).keys() == dict(flatten(config)).keys()


@pytest.mark.parametrize('name', ['quickstart', 'prompteol_cse:opt-2.7b', 'small_text'])
def test_a_run_that_has_no_key_with_a_default_goes_on(name, tmp_path):
    """As if its code had not known them; the keys that this config sets otherwise are there."""
    now = load(name)
    functions = {section: function for section, (function, _) in BUILDERS.items()}
    functions |= {'tokenizer': train_tokenizer} | source_functions(now['data']['sources'])
    neutral = fill_missing({}, functions)
    before = as_json(now)
    removed = [key for key, value in flatten(before) if (key, value) in neutral.items()]
    for key in removed:
        *sections, last = key.split('.')
        place = before
        for section in sections:
            place = place[section]
        del place[last]
    assert {'model.init', 'loss.form', 'prompt.text_tokens', 'lora.targets', 'mesh.tensor'} & {
        *removed
    }
    assert check_resume(before, now, tmp_path, functions) == []


# Parameters of the published OPT and LLaMA.
LANGUAGE_MODELS = {
    'opt-125m': 125e6, 'opt-350m': 350e6, 'opt-1.3b': 1.3e9, 'opt-2.7b': 2.7e9, 'opt-6.7b': 6.7e9,
    'opt-13b': 13e9, 'opt-30b': 30e9, 'opt-66b': 66e9,
    'llama-7b': 6.7e9, 'llama-13b': 13e9, 'llama-30b': 32.5e9, 'llama-65b': 65.2e9,
}  # fmt: skip


@pytest.mark.parametrize('name', LANGUAGE_MODELS)
def test_language_models_have_their_sizes(name):
    config = load(f'prompteol:{name}')
    encoder_config = build(
        EncoderConfig, 'model', config['model'], vocab_size=config['tokenizer']['vocab_size']
    )
    with jax.sharding.use_abstract_mesh(pod(config['mesh'], 8)):
        abstract = jax.eval_shape(lambda: Encoder(encoder_config, nnx.Rngs(0)))
    # LLaMA's matrix for the next token, which no vector needs.
    scores = 0 if name.startswith('opt') else 32_000 * encoder_config.width
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) + scores == pytest.approx(
        LANGUAGE_MODELS[name], rel=0.035
    )


@pytest.mark.parametrize(
    'name', ['opt-1.3b', 'opt-2.7b', 'opt-6.7b', 'opt-13b', 'llama-7b', 'llama-13b', 'llama-30b']
)
def test_contrastive_fine_tuning_is_the_papers(name):
    """arXiv 2307.16645, train_llm.sh and ft_llm.py of its program."""
    config, inference = load(f'prompteol_cse:{name}'), load(f'prompteol:{name}')
    assert config['prompt'] == inference['prompt'] == {'template': PROMPTEOL, 'text_tokens': 32}
    assert config['model'] == inference['model'] | {'dtype': 'float32'}
    batch = 200 if name[-3:] in ('13b', '30b') else 256
    assert (config['train']['batch_pairs'], config['train']['steps']) == (batch, 275_601 // batch)
    loss = {'initial_temperature': 0.05, 'train_temperature': False, 'symmetric': False}
    assert loss.items() <= config['loss'].items() and config['data']['negatives'] == 1
    rate = {
        'peak_lr': 5e-4,
        'warmup_steps': 100,
        'decay': 'linear',
        'final_share': 0.0,
        'weight_decay': 0.0,
        'b2': 0.999,
        'clip_norm': 1.0,
    }
    assert rate.items() <= config['optimizer'].items()
    assert config['checkpoint']['every_steps'] == config['checkpoint']['keep_every'] == 50


@pytest.mark.parametrize('file', ['prompteol', 'prompteol_cse'])
def test_without_an_argument_the_model_is_opt_2_7b(file):
    assert load(file) == load(f'{file}:opt-2.7b')
    assert load(file) != load(f'{file}:opt-1.3b')


def test_every_former_file_is_now_an_argument():
    assert len(configs.RENAMED) == 19
    for former, reference in configs.RENAMED.items():
        assert reference.replace('.py:', ':') in CONFIGS
        assert not (FOLDER / f'{former}.py').exists()
        with pytest.raises(ImportError, match=re.escape(f'is now configs/{reference}')):
            exec(f'from configs import {former}')


@pytest.mark.parametrize('name', TABLE)
def test_the_papers_models_have_the_papers_sizes(name):
    config, (parameters, batch_pairs) = load(name), TABLE[name]
    encoder_config = build(
        EncoderConfig, 'model', config['model'], vocab_size=config['tokenizer']['vocab_size']
    )
    with jax.sharding.use_abstract_mesh(pod(config['mesh'])):
        abstract = jax.eval_shape(lambda: Encoder(encoder_config, nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == pytest.approx(
        parameters, rel=0.2
    )
    assert config['train']['batch_pairs'] == batch_pairs
    assert encoder_config.heads * encoder_config.head_width == encoder_config.width


def test_every_key_has_a_comment():
    """Behind it, or on the lines above it."""
    source = (FOLDER / 'base.py').read_text()
    commented = {
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    silent = []
    for number, line in enumerate(source.splitlines(), 1):
        name, equals, value = line.strip().partition(' = ')
        above = number - 1 in commented and source.splitlines()[number - 2].strip().startswith('#')
        if (
            equals
            and name.startswith('c.')
            and value != 'ConfigDict()'
            and number not in commented
            and not above
        ):
            silent.append(name)
    assert not silent
