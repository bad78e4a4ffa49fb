"""Every file in configs/ fits the code, and the papers' models have the published sizes."""

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
from cpt_jax.data.mixture import KINDS, fix_source_rules, get_source_classes
from cpt_jax.loss.infonce import InfoNCE
from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.origin.resolve import Scratch
from cpt_jax.runs.checkpoint import Checkpoints
from cpt_jax.runs.config import build, check_resume, fill_missing, flatten, to_json_values
from cpt_jax.runs.config_file import load_config
from cpt_jax.runtime.mesh import AXES, count_batch_shards, make_mesh
from cpt_jax.text.prompt_template import PROMPTEOL, Prompt, parse_prompt_section
from cpt_jax.text.tokenizer import train_tokenizer
from cpt_jax.training.form import resolve_form
from cpt_jax.training.optimizer import make_optimizer
from cpt_jax.training.sections import SECTION_FUNCTIONS, Data, Evaluation, Train

FOLDER = Path(__file__).parents[1] / 'configs'


def list_configs(folder: Path) -> list[str]:
    """Returns 'FILE' of each config, or 'FILE:ARGUMENT' for each argument if it has ARGUMENTS."""
    found = []
    for path in sorted(folder.glob('[a-z]*.py')):
        if path.stem.startswith('prepare_'):  # tests/prepare checks those of launch/prepare.py
            continue
        arguments = importlib.import_module(f'configs.{path.stem}').__dict__.get('ARGUMENTS', ())
        if path.stem == 'finetune':  # any directory is an argument
            arguments = ('models/bert',)
        found += [f'{path.stem}:{argument}' for argument in arguments] or [path.stem]
    return found


CONFIGS = list_configs(FOLDER)

# Arguments of EncoderConfig that a pretrained family sets (model/families), not a config.
FAMILY_ARGUMENTS = (
    'dense', 'position_offset', 'padding_id', 'relative_buckets', 'rotary_base', 'rotary_scaling',
    'rotary_width', 'rotary_pairs', 'norm_place', 'norm_bias',
    'norm_from_one', 'first_norm', 'parallel', 'qkv_bias', 'out_bias', 'down_bias',
    'query_key_norm',
    'attention_width', 'local_layers', 'window',
    'local_rotary_base', 'local_rotary_scaling', 'final_norm', 'embedding_norm', 'embedding_width',
    'embedding_scale', 'token_types',
    'tied',
)  # fmt: skip
# Section -> the function whose keyword arguments it contains, and those that no config sets.
BUILDERS = {
    'prompt': (Prompt, ('demonstrations', 'clean')),
    'data': (Data, ()),
    'model': (EncoderConfig, ('vocab_size', *FAMILY_ARGUMENTS)),
    'lora': (LoRA, ()),
    'mesh': (make_mesh, ('devices',)),
    'loss': (InfoNCE, ()),
    'optimizer': (make_optimizer, ('steps',)),
    'train': (Train, ()),
    'evaluation': (Evaluation, ()),
    'checkpoint': (Checkpoints, ('directory', 'tokenizer_file', 'about')),
}
# Table 1 of arXiv 2201.10005: number of parameters, pairs in a batch.
PAPER_SIZES = {
    'cpt_s': (300e6, 12_288), 'cpt_m': (1.2e9, 6912), 'cpt_l': (6e9, 5896), 'cpt_xl': (175e9, 4976),
    'cpt_code_s': (300e6, 12_288), 'cpt_code_m': (1.2e9, 6912),
}  # fmt: skip


def load(name: str) -> dict:
    """Returns the config of 'FILE' or 'FILE:ARGUMENT'."""
    file, colon, argument = name.partition(':')
    return load_config(f'{FOLDER}/{file}.py{colon}{argument}')


def make_abstract_mesh(mesh: dict, devices: int = 64) -> AbstractMesh:
    """Returns the mesh of a config on devices that do not exist here."""
    remaining = devices // math.prod(size for size in mesh.values() if size != -1)
    return AbstractMesh(
        tuple(remaining if mesh[axis] == -1 else mesh[axis] for axis in AXES),
        AXES,
        (AxisType.Explicit,) * 3,
    )


@pytest.mark.parametrize('name', CONFIGS)
def test_every_section_has_the_arguments_of_its_function(name):
    config = load(name)
    assert config.keys() == {*SECTION_FUNCTIONS, 'objective', 'seed', 'init_from'}
    assert set(SECTION_FUNCTIONS) == {*BUILDERS, 'tokenizer'}
    for section, (function, given) in BUILDERS.items():
        assert config[section].keys() == inspect.signature(function).parameters.keys() - set(
            given
        ), section
    assert config['tokenizer'].keys() == inspect.signature(train_tokenizer).parameters.keys() - {
        'texts',
        'seed',
        'bos_and_eos',
    } | {'path', 'delimiters'}
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
def test_values_of_a_config_are_consistent(name):
    """Repeats the checks of a run before it reads its data."""
    config = load(name)
    train = build(Train, 'train', config['train'])
    data = build(Data, 'data', config['data'])
    parse_prompt_section(config['prompt'])
    build(InfoNCE, 'loss', config['loss']).check_width(config['model']['width'])
    build(make_optimizer, 'optimizer', config['optimizer'], steps=train.steps)
    encoder_config = build(
        EncoderConfig,
        'model',
        resolve_form(config, Scratch())['model'],
        vocab_size=config['tokenizer']['vocab_size'],
    )
    assert max(data.max_tokens_x, data.max_tokens_y) <= min(
        data.row_length, encoder_config.max_length
    )
    devices = 8 if name == 'lm_tiny' else 64  # lm_tiny is for a laptop
    mesh = make_abstract_mesh(config['mesh'], devices)
    assert train.batch_pairs >= count_batch_shards(mesh) * train.encode_chunks
    assert dict(flatten(to_json_values(config))).keys() == dict(flatten(config)).keys()


@pytest.mark.parametrize('name', ['quickstart', 'prompteol_cse:opt-2.7b', 'small_text'])
def test_run_without_keys_at_their_defaults_resumes(name, tmp_path):
    """Removes all keys with default values, as if the code of the run did not have them."""
    now = load(name)
    functions = {section: function for section, (function, _) in BUILDERS.items()}
    functions |= {'tokenizer': train_tokenizer} | get_source_classes(now['data']['sources'])
    neutral = fill_missing({}, functions)
    before = to_json_values(now)
    removed = [key for key, value in flatten(before) if (key, value) in neutral.items()]
    for key in removed:
        *parents, last = key.split('.')
        section = before
        for parent in parents:
            section = section[parent]
        del section[last]
    assert {'model.init', 'loss.form', 'prompt.text_tokens', 'lora.targets', 'mesh.tensor'} & {
        *removed
    }
    data = now['data']
    now = now | {'data': data | {'sources': fix_source_rules(data['sources'], {})}}
    assert check_resume(before, now, tmp_path, functions) == []


# Number of parameters of the published OPT and LLaMA models.
LANGUAGE_MODELS = {
    'opt-125m': 125e6, 'opt-350m': 350e6, 'opt-1.3b': 1.3e9, 'opt-2.7b': 2.7e9, 'opt-6.7b': 6.7e9,
    'opt-13b': 13e9, 'opt-30b': 30e9, 'opt-66b': 66e9,
    'llama-7b': 6.7e9, 'llama-13b': 13e9, 'llama-30b': 32.5e9, 'llama-65b': 65.2e9,
}  # fmt: skip


@pytest.mark.parametrize('name', LANGUAGE_MODELS)
def test_language_models_have_the_published_sizes(name):
    config = load(f'prompteol:{name}')
    encoder_config = build(
        EncoderConfig,
        'model',
        resolve_form(config, Scratch())['model'],
        vocab_size=config['tokenizer']['vocab_size'],
    )
    with jax.sharding.use_abstract_mesh(make_abstract_mesh(config['mesh'], 8)):
        abstract = jax.eval_shape(lambda: Encoder(encoder_config, nnx.Rngs(0)))
    # The output head of LLaMA, which an encoder does not have.
    head = 0 if name.startswith('opt') else 32_000 * encoder_config.width
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) + head == pytest.approx(
        LANGUAGE_MODELS[name], rel=0.035
    )


@pytest.mark.parametrize(
    'name', ['opt-1.3b', 'opt-2.7b', 'opt-6.7b', 'opt-13b', 'llama-7b', 'llama-13b', 'llama-30b']
)
def test_contrastive_fine_tuning_has_the_settings_of_the_paper(name):
    """Compares with arXiv 2307.16645, and with train_llm.sh and ft_llm.py of its code."""
    config, inference = load(f'prompteol_cse:{name}'), load(f'prompteol:{name}')
    expected = {'template': PROMPTEOL, 'text_tokens': 32, 'begin_token': 'auto'}
    assert config['prompt'] == inference['prompt'] == expected
    assert config['model'] == inference['model'] | {'dtype': 'float32'}
    batch = 200 if name[-3:] in ('13b', '30b') else 256
    assert (config['train']['batch_pairs'], config['train']['steps']) == (batch, 275_601 // batch)
    loss = {'initial_temperature': 0.05, 'train_temperature': False, 'symmetric': False}
    assert loss.items() <= config['loss'].items() and config['data']['negatives'] == 1
    optimizer = {
        'peak_lr': 5e-4,
        'warmup_steps': 100,
        'decay': 'linear',
        'final_share': 0.0,
        'weight_decay': 0.0,
        'b2': 0.999,
        'clip_norm': 1.0,
    }
    assert optimizer.items() <= config['optimizer'].items()
    assert config['checkpoint']['every_steps'] == config['checkpoint']['keep_every'] == 50


@pytest.mark.parametrize('file', ['prompteol', 'prompteol_cse'])
def test_default_argument_is_opt_2_7b(file):
    assert load(file) == load(f'{file}:opt-2.7b')
    assert load(file) != load(f'{file}:opt-1.3b')


def test_every_former_config_file_is_an_argument():
    assert len(configs.RENAMED) == 19
    for former, reference in configs.RENAMED.items():
        assert reference.replace('.py:', ':') in CONFIGS
        assert not (FOLDER / f'{former}.py').exists()
        with pytest.raises(ImportError, match=re.escape(f'is now configs/{reference}')):
            exec(f'from configs import {former}')


@pytest.mark.parametrize('name', PAPER_SIZES)
def test_models_of_the_paper_have_its_sizes(name):
    config, (parameters, batch_pairs) = load(name), PAPER_SIZES[name]
    encoder_config = build(
        EncoderConfig,
        'model',
        resolve_form(config, Scratch())['model'],
        vocab_size=config['tokenizer']['vocab_size'],
    )
    with jax.sharding.use_abstract_mesh(make_abstract_mesh(config['mesh'])):
        abstract = jax.eval_shape(lambda: Encoder(encoder_config, nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == pytest.approx(
        parameters, rel=0.2
    )
    assert config['train']['batch_pairs'] == batch_pairs
    assert encoder_config.heads * encoder_config.head_width == encoder_config.width


def test_every_key_has_a_comment():
    """The comment is on the same line or on the line above."""
    source = (FOLDER / 'base.py').read_text()
    commented = {
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    uncommented = []
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
            uncommented.append(name)
    assert not uncommented
