"""Every file in configs/ is a config of this code, and the paper's models have the paper's sizes."""

import inspect
import io
import math
import tokenize
from pathlib import Path

import jax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

from cpt_jax.checkpoint import Checkpoints
from cpt_jax.config import as_json, build, flatten
from cpt_jax.data.mixture import KINDS
from cpt_jax.loss.infonce import InfoNCE
from cpt_jax.mesh import AXES, batch_shards, make_mesh
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.lora import LoRA
from cpt_jax.model.shape import Shape
from cpt_jax.program import load_config
from cpt_jax.prompt import PROMPTEOL, Prompt, configured
from cpt_jax.tokenizer import train_tokenizer
from cpt_jax.train.optimizer import make_optimizer
from cpt_jax.train.setup import SECTIONS, Data, Evaluation, Train

FOLDER = Path(__file__).parents[1] / 'configs'
FILES = sorted(path.stem for path in FOLDER.glob('*.py') if path.stem != '__init__')

# Whose keyword arguments a section is, and which of them are not the config's.
# What comes with a pretrained family (model/families) and is not a config's to choose.
OF_FAMILIES = (
    'pooling', 'position_offset', 'rotary_base', 'rotary_scaling', 'rotary_width', 'rotary_pairs', 'norm_place', 'norm_bias',
    'norm_from_one', 'first_norm', 'parallel', 'qkv_bias', 'out_bias', 'query_key_norm', 'attention_width', 'local_layers', 'window',
    'local_rotary_base', 'local_rotary_scaling', 'final_norm', 'embedding_norm', 'embedding_width', 'embedding_scale', 'token_types',
    'tied',
)  # fmt: skip
BUILDERS = {
    'prompt': (Prompt, ('demonstrations', 'clean')),
    'data': (Data, ()),
    'model': (Shape, ('vocab_size', *OF_FAMILIES)),
    'lora': (LoRA, ()),
    'mesh': (make_mesh, ('devices',)),
    'loss': (InfoNCE, ()),
    'optimizer': (make_optimizer, ('steps',)),
    'train': (Train, ()),
    'evaluation': (Evaluation, ()),
    'checkpoint': (Checkpoints, ('directory', 'tokenizer', 'about')),
}
# Table 1 of arXiv 2201.10005: parameters, batch.
TABLE = {
    'cpt_s': (300e6, 12_288), 'cpt_m': (1.2e9, 6912), 'cpt_l': (6e9, 5896), 'cpt_xl': (175e9, 4976),
    'cpt_code_s': (300e6, 12_288), 'cpt_code_m': (1.2e9, 6912),
}  # fmt: skip


def load(name: str) -> dict:
    return load_config(FOLDER / f'{name}.py')


def pod(mesh: dict, devices: int = 64) -> AbstractMesh:
    """A config's mesh on more devices than there are here."""
    left = devices // math.prod(size for size in mesh.values() if size != -1)
    return AbstractMesh(tuple(left if mesh[axis] == -1 else mesh[axis] for axis in AXES), AXES, (AxisType.Explicit,) * 3)


@pytest.mark.parametrize('name', FILES)
def test_every_section_is_the_arguments_of_its_function(name):
    config = load(name)
    assert config.keys() == {*SECTIONS, 'objective', 'seed', 'init_from'}
    assert set(SECTIONS) == {*BUILDERS, 'tokenizer'}
    for section, (function, given) in BUILDERS.items():
        assert config[section].keys() == inspect.signature(function).parameters.keys() - set(given), section
    assert config['tokenizer'].keys() == inspect.signature(train_tokenizer).parameters.keys() - {'texts', 'seed', 'boundaries'} | {'path'}
    for source in config['data']['sources'].values():
        known = inspect.signature(KINDS[source['kind']]).parameters
        required = {key for key, parameter in known.items() if parameter.default is inspect.Parameter.empty}
        assert required - {'split', 'tokenizer'} <= source.keys() - {'kind', 'weight'} <= known.keys() - {'split', 'tokenizer'}


@pytest.mark.parametrize('name', FILES)
def test_the_values_of_a_config_go_together(name):
    """What a run checks before it reads its data."""
    config = load(name)
    train, data = build(Train, 'train', config['train']), build(Data, 'data', config['data'])
    configured(config['prompt'])
    build(InfoNCE, 'loss', config['loss']).check_width(config['model']['width'])
    build(make_optimizer, 'optimizer', config['optimizer'], steps=train.steps)
    shape = build(Shape, 'model', config['model'], vocab_size=config['tokenizer']['vocab_size'])
    assert max(data.max_tokens_x, data.max_tokens_y) <= min(data.row_length, shape.max_length)
    mesh = pod(config['mesh'], 8 if name == 'lm_tiny' else 64)  # that one is for a laptop
    assert train.batch_pairs >= batch_shards(mesh) * train.encode_chunks
    assert dict(flatten(as_json(config))).keys() == dict(flatten(config)).keys()


# Parameters of the published OPT and LLaMA.
LANGUAGE_MODELS = {
    'opt_125m': 125e6, 'opt_350m': 350e6, 'opt_1p3b': 1.3e9, 'opt_2p7b': 2.7e9, 'opt_6p7b': 6.7e9, 'opt_13b': 13e9, 'opt_30b': 30e9,
    'opt_66b': 66e9, 'llama_7b': 6.7e9, 'llama_13b': 13e9, 'llama_30b': 32.5e9, 'llama_65b': 65.2e9,
}  # fmt: skip


@pytest.mark.parametrize('name', LANGUAGE_MODELS)
def test_language_models_have_their_sizes(name):
    config = load(f'prompteol_{name}')
    shape = build(Shape, 'model', config['model'], vocab_size=config['tokenizer']['vocab_size'])
    with jax.sharding.use_abstract_mesh(pod(config['mesh'], 8)):
        abstract = jax.eval_shape(lambda: Encoder(shape, nnx.Rngs(0)))
    scores = 0 if name.startswith('opt') else 32_000 * shape.width  # LLaMA's matrix for the next token, which no vector needs
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) + scores == pytest.approx(LANGUAGE_MODELS[name], rel=0.035)


@pytest.mark.parametrize('name', ['opt_1p3b', 'opt_2p7b', 'opt_6p7b', 'opt_13b', 'llama_7b', 'llama_13b', 'llama_30b'])
def test_contrastive_fine_tuning_is_the_papers(name):
    """arXiv 2307.16645, train_llm.sh and ft_llm.py of its program."""
    config, inference = load(f'prompteol_cse_{name}'), load(f'prompteol_{name}')
    assert config['prompt'] == inference['prompt'] == {'template': PROMPTEOL, 'text_tokens': 32}
    assert config['model'] == inference['model'] | {'dtype': 'float32'}
    batch = 200 if name[-3:] in ('13b', '30b') else 256
    assert (config['train']['batch_pairs'], config['train']['steps']) == (batch, 275_601 // batch)
    loss = {'initial_temperature': 0.05, 'train_temperature': False, 'symmetric': False}
    assert loss.items() <= config['loss'].items() and config['data']['negatives'] == 1
    rate = {'peak_lr': 5e-4, 'warmup_steps': 100, 'decay': 'linear', 'final_share': 0.0, 'weight_decay': 0.0, 'b2': 0.999, 'clip_norm': 1.0}
    assert rate.items() <= config['optimizer'].items()
    assert config['checkpoint']['every_steps'] == config['checkpoint']['keep_every'] == 50


@pytest.mark.parametrize('name', TABLE)
def test_the_papers_models_have_the_papers_sizes(name):
    config, (parameters, batch_pairs) = load(name), TABLE[name]
    shape = build(Shape, 'model', config['model'], vocab_size=config['tokenizer']['vocab_size'])
    with jax.sharding.use_abstract_mesh(pod(config['mesh'])):
        abstract = jax.eval_shape(lambda: Encoder(shape, nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == pytest.approx(parameters, rel=0.2)
    assert config['train']['batch_pairs'] == batch_pairs
    assert shape.heads * shape.head_width == shape.width


def test_every_key_has_a_comment():
    """Behind it, or on the lines above it."""
    source = (FOLDER / 'base.py').read_text()
    commented = {token.start[0] for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type == tokenize.COMMENT}
    silent = []
    for number, line in enumerate(source.splitlines(), 1):
        name, equals, value = line.strip().partition(' = ')
        above = number - 1 in commented and source.splitlines()[number - 2].strip().startswith('#')
        if equals and name.startswith('c.') and value != 'ConfigDict()' and number not in commented and not above:
            silent.append(name)
    assert not silent
