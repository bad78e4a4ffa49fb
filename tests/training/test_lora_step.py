"""Runs with LoRA: what is trained, what is saved, and equal results on any mesh and in any number
of chunks.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from cpt_jax.data.batch import make_local_batches, place_batch
from cpt_jax.embed.load import load_embedder
from cpt_jax.exporting import adapter
from cpt_jax.exporting.adapter import export_adapter
from cpt_jax.exporting.directory import export
from cpt_jax.model.formats.llama2c import LLAMA2C
from cpt_jax.origin.earlier_run import find_latest_checkpoint
from cpt_jax.origin.frozen_base import open_checked_base
from cpt_jax.origin.pretrained import open_pretrained
from cpt_jax.runs import checkpoint
from cpt_jax.runs.checkpoint import to_nested_dict
from cpt_jax.runs.config import flatten
from cpt_jax.runs.config_file import load_config
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import AXES
from cpt_jax.training import loop
from cpt_jax.training.setup import set_up
from cpt_jax.training.start import make_starting_state
from cpt_jax.training.step import StepPrograms
from tests.conftest import sentences

pytestmark = pytest.mark.usefixtures('persistent_compilation_cache')

SIZES = {
    'hidden_size': 128,
    'intermediate_size': 128,
    'num_attention_heads': 4,
    'max_position_embeddings': 48,
}
TEXTS = ['list file', 'a longer text about a parser of tables']


def write_llama(folder: Path, layers: int) -> Path:
    """Writes a LLaMA with random weights and a byte-level BPE tokenizer."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        sentences(200),
        tokenizers.trainers.BpeTrainer(
            vocab_size=290, initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer.save(str(folder / 'tokenizer.json'))
    config = {
        'model_type': 'llama',
        'vocab_size': tokenizer.get_vocab_size(),
        'num_hidden_layers': layers,
        **SIZES,
    }
    (folder / 'config.json').write_text(json.dumps(config))
    random, d, f = np.random.default_rng(0), 128, 128
    shapes = {'embed_tokens.weight': (config['vocab_size'], d), 'norm.weight': (d,)}
    for i in range(layers):
        attention = {f'self_attn.{name}_proj.weight': (d, d) for name in 'qkvo'}
        rest = {
            'mlp.gate_proj.weight': (f, d),
            'mlp.up_proj.weight': (f, d),
            'mlp.down_proj.weight': (d, f),
        }
        norms = {'input_layernorm.weight': (d,), 'post_attention_layernorm.weight': (d,)}
        shapes |= {
            f'layers.{i}.{name}': shape for name, shape in (attention | rest | norms).items()
        }

    def draw(shape):
        return np.ones(shape) if len(shape) == 1 else random.normal(0, 0.1, shape)

    tensors = {name: draw(shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
    return folder


def load_lora_config(config_file: Path, folder: Path, **lora) -> dict:
    config = load_config(config_file)
    config['init_from'] = str(folder)
    config['lora'] |= {'rank': 4, 'dropout': 0.0, 'base': 'nf4'} | lora
    config['model'] |= {'remat': 'full'}
    config['optimizer'] |= {'epsilon': 1e-4, 'warmup_steps': 1}
    config['train']['steps'] = 2
    config['evaluation']['every_steps'] = 0
    return config


class NoCheckpoints:
    """A checkpoint directory without checkpoints."""

    def restore(self, abstract: object) -> None:
        del abstract


def train_two_steps(
    config: dict, workdir: Path, devices: int
) -> tuple[list[float], dict, dict, object]:
    """Returns the losses, the trained parameters before and after, and the final state."""
    if devices == 1:
        config['mesh'] = {'data': 1, 'fsdp': 1, 'tensor': 1}
    chosen_devices = jax.devices()[:devices]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, 'devices', lambda: chosen_devices)
        run = set_up(config, workdir)
    assert run.mesh.axis_names == AXES and run.mesh.size == devices
    losses, programs = [], StepPrograms(run)
    with jax.set_mesh(run.mesh):
        _, state = make_starting_state(run, NoCheckpoints())
        before = dict(flatten(jax.device_get(to_nested_dict(state.params))))
        frozen = jax.device_get(to_nested_dict(state.frozen))
        batches = make_local_batches(run.indices, run.reader, run.layout, run.mesh)
        for number in range(2):
            batch = place_batch(batches[number], run.mesh, run.layout)
            state, metrics = programs(state, batch)(state, batch)
            losses.append(float(metrics['loss']))
    jax.tree.map(
        np.testing.assert_array_equal, frozen, jax.device_get(to_nested_dict(state.frozen))
    )
    return losses, before, dict(flatten(jax.device_get(to_nested_dict(state.params)))), state


def test_one_device_and_a_chunked_mesh_train_the_same_adapters_only(config_file, tmp_path):
    base = write_llama(tmp_path, layers=2)
    chosen = {'targets': ('out', 'up'), 'dropout': 0.2, 'base': 'int8'}
    losses, before, after, state = train_two_steps(
        load_lora_config(config_file, base, **chosen), tmp_path / 'one', 1
    )
    adapters = 'attention.out_adapter', 'feed_forward.up_adapter'
    names = {
        f'encoder.{stack}.{name}.{low}'
        for stack in ('blocks', 'last')
        for name in adapters
        for low in ('lora_a', 'lora_b')
    }
    assert before.keys() == {*names, 'log_scale'}
    assert all(not np.array_equal(before[name], after[name]) for name in before)
    # The optimizer state has two moments per trained parameter, and the step counts of Adam and of
    # the schedule.
    moments = sum(np.size(leaf) for leaf in jax.tree.leaves(state.optimizer)) - 2
    assert moments == 2 * sum(np.size(value) for value in before.values())
    config = load_lora_config(config_file, base, **chosen)
    config['mesh'] = {'data': 2, 'fsdp': 2, 'tensor': 2}
    config['train']['encode_chunks'], config['model']['layer_loop'] = 2, 'scan'
    other_losses, _, other, split = train_two_steps(config, tmp_path / 'eight', 8)
    np.testing.assert_allclose(other_losses, losses, rtol=2e-5)
    for name, value in after.items():
        np.testing.assert_allclose(other[name], value, atol=2e-5, err_msg=name)
    query = split.encoder.blocks.attention.query
    assert query.codes[...].addressable_shards[0].data.nbytes * 4 == query.codes[...].nbytes


@pytest.fixture(scope='module')
def base(tmp_path_factory) -> Path:
    return write_llama(tmp_path_factory.mktemp('llama'), layers=1)


@pytest.fixture(scope='module')
def trained(config_file, base, tmp_path_factory) -> Path:
    """The directory of a run of two steps, trained by the program's own loop."""
    workdir = tmp_path_factory.mktemp('lora') / 'run'
    config = load_lora_config(config_file, base)
    config['optimizer']['peak_lr'] = 0.05  # high enough that adapters change the embeddings
    assert loop.train(config, workdir) == 0
    return workdir


def test_checkpoint_does_not_contain_the_base_and_the_run_resumes(
    trained, config_file, base, tmp_path, capsys
):
    stored = checkpoint.ocp.metadata(trained / 'checkpoints' / '2').metadata
    assert 'frozen' not in stored and 'token_embedding' not in json.dumps(
        [name for name, _ in flatten(stored['params'])]
    )
    # Run, base and data have moved.
    shutil.copytree(trained, tmp_path / 'run')
    moved = shutil.copytree(base, tmp_path / 'moved')
    config = load_lora_config(config_file, moved)
    config['optimizer']['peak_lr'], config['train']['steps'] = 0.05, 3
    section = config['data']['sources']['pairs']
    section['path'] = str(shutil.copy(section['path'], tmp_path / 'moved.jsonl'))
    assert loop.train(config, tmp_path / 'run') == 0
    output = capsys.readouterr().out
    assert 'adapters of rank 4' in output
    assert f"init_from: '{base}' -> '{moved}'" in output and 'data.sources.pairs.path' in output
    assert find_latest_checkpoint(RunDir(tmp_path / 'run')).provenance.base.path == str(moved)
    changed = {
        name: array + (0.5 if 'q_proj' in name else 0)
        for name, array in load_file(base / 'model.safetensors').items()
    }
    shutil.copytree(base, tmp_path / 'base')
    save_file(changed, tmp_path / 'base' / 'model.safetensors')
    described = find_latest_checkpoint(RunDir(trained)).provenance.base
    with pytest.raises(UserError, match=r'trained on other weights than .* holds now'):
        open_checked_base(dataclasses.replace(described, path=str(tmp_path / 'base')), 'run')
    with pytest.raises(
        UserError, match=r'run holds adapters, whose base cannot be read: init_from .*gone'
    ):
        open_checked_base(dataclasses.replace(described, path=str(tmp_path / 'gone')), 'run')


def test_base_that_has_moved_is_given_by_its_new_place(trained, base, tmp_path):
    moved = str(shutil.copytree(base, tmp_path / 'moved'))
    elsewhere = load_embedder(str(trained), base=moved)
    np.testing.assert_array_equal(elsewhere(TEXTS, 'x'), load_embedder(str(trained))(TEXTS, 'x'))
    assert export_adapter(str(trained), tmp_path / 'adapter', moved).base == moved


def test_exported_model_and_exported_adapter_give_the_runs_embeddings(trained, base, tmp_path):
    """The merged export has the dequantized base weights, so its embeddings equal the run's."""
    parts = export(
        str(trained), tmp_path / 'merged', dtype='float32', shard_bytes=1 << 30, license_id='mit'
    )
    assert max(part.difference for part in parts) < 1e-5
    written = export_adapter(str(trained), tmp_path / 'adapter')
    rows = json.loads((base / 'config.json').read_text())['vocab_size']
    assert (written.base, written.rows, written.template) == (str(base), rows + 4, '')
    tensors = load_file(tmp_path / 'adapter' / 'adapter_model.safetensors')
    assert len(tensors) == 2 * 7 + 1
    embed = load_embedder(str(tmp_path / 'adapter'))
    without_adapter = load_embedder(str(base))(TEXTS, 'x')
    assert np.abs(embed(TEXTS, 'x') - without_adapter).max() > 0.01


def test_adapter_for_a_base_that_peft_cannot_load_is_refused(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(
        adapter,
        'open_checked_base',
        lambda base, run: dataclasses.replace(open_pretrained(base.path), family=LLAMA2C),
    )
    with pytest.raises(
        UserError, match=r'--adapter: .* is a model of llama2\.c, which PEFT cannot load'
    ):
        export_adapter(str(trained), tmp_path / 'adapter')
    assert not (tmp_path / 'adapter').exists()


def test_lora_without_a_base_is_refused(trained, config_file, base, tmp_path):
    config = load_lora_config(config_file, base)
    with pytest.raises(UserError, match=r'lora\.rank=4 needs init_from'):
        set_up(config | {'init_from': ''}, tmp_path)
    with pytest.raises(UserError, match=r'its checkpoints contain only adapters'):
        set_up(
            config
            | {
                'init_from': str(trained),
                'model': checkpoint.read_latest_metadata(trained / 'checkpoints')[1]['config'][
                    'model'
                ],
            },
            tmp_path,
        )
