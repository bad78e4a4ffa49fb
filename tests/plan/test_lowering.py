import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpt_jax.data.batch import place_batch
from cpt_jax.loss.infonce import InfoNCE
from cpt_jax.plan.hlo.program import Module, parse_program
from cpt_jax.plan.lowering import count_device_bytes, lower_training_step, make_longest_layout
from cpt_jax.runtime.errors import UserError
from cpt_jax.training.contrastive import Contrastive
from cpt_jax.training.sections import Data, Train
from cpt_jax.training.setup import set_up
from cpt_jax.training.step import StepPrograms
from tests.goldens.golden import read_golden, restore


def list_instructions(module: Module) -> list[tuple]:
    """Returns the whole program, without metadata about its source code."""
    return [
        (computation.name, line.opcode, line.shape, line.operands, line.literal)
        for computation in module.computations.values()
        for line in computation.instructions.values()
    ]


def list_types(state) -> list:
    return [(leaf.shape, leaf.dtype, leaf.sharding) for leaf in jax.tree.leaves(state)]


def test_plan_lowers_the_step_that_training_runs(tiny, tmp_path):
    """Compares, on the CPU, the program of a run with data with that of a plan without data."""
    rows = [
        {
            'x': f'the query number {i} of many',
            'y': f'def answer_{i}(): return {i * i}',
            'negatives': [f'no {i}'],
        }
        for i in range(200)
    ]
    (tmp_path / 'pairs.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    source = {'kind': 'jsonl', 'weight': 1.0, 'path': str(tmp_path / 'pairs.jsonl'), 'holdout': 0.1}
    # No 'auto' values, which a plan resolves for TPUs.
    fixed = {'model.dtype': 'float32', 'model.layer_loop': 'scan', 'model.attention': 'masked'}
    same = fixed | {
        'model.layers': 2,
        'data.negatives': 1,
        'data.row_choices': 1,
        'train.batch_pairs': 30,
    }
    split = {'train.encode_chunks': 2, 'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2}
    config = tiny(**same, **split)
    config['data']['sources'] = {'pairs': source}
    config['tokenizer']['vocab_size'] = 320
    run = set_up(config, tmp_path / 'run')
    with jax.set_mesh(run.mesh):
        batch = place_batch(next(run.iterate_batches_after(0)), run.mesh, run.layout)
        state = run.make_abstract_state()
        trained = parse_program(StepPrograms(run)(state, batch).as_text())
    config['data']['rows'] = run.layout.rows
    step = lower_training_step(config, jax.devices())
    assert step.layout == run.layout and step.mesh == run.mesh
    assert list_types(step.state) == list_types(state)
    planned = parse_program(step.lowered.compile().as_text())
    assert list_instructions(planned) == list_instructions(trained)


def make_layout(data: dict, train: dict, parts: int = 4):
    sizes = {'max_tokens_x': 40, 'max_tokens_y': 60, 'row_length': 100} | data
    data_section = Data(sources={}, **sizes)
    return make_longest_layout(
        data_section,
        Train(**({'steps': 1, 'batch_pairs': 64} | train)),
        parts,
        Contrastive(InfoNCE()).get_max_lengths(data_section),
    )


def test_without_data_all_texts_have_their_maximum_length():
    plain = make_layout({}, {})
    assert (plain.parts, plain.chunks, plain.pairs, plain.texts, plain.rows, plain.tokens) == (
        4,
        1,
        16,
        2,
        16,
        4 * 16 * 100,
    )
    assert make_layout({'row_length': 64}, {}).rows == 32  # x and y do not fit in one row
    # y and x share a row; each negative has a row of its own.
    assert make_layout({'negatives': 2}, {}).rows == 16 * 2 + 16
    assert make_layout({'packed': False}, {}).rows == 32
    assert make_layout({'rows': 5}, {}).rows == 5
    assert make_layout({}, {'encode_chunks': 2}).rows == 8


def test_batch_that_the_parts_do_not_divide_is_padded():
    assert make_layout({}, {'batch_pairs': 65}).pairs == 17


def test_fewer_pairs_than_parts_and_chunks_are_refused():
    with pytest.raises(UserError, match='train.batch_pairs=7 .* = 8'):
        make_layout({}, {'batch_pairs': 7, 'encode_chunks': 2})


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (
            {'data.max_tokens_x': 101, 'data.row_length': 100},
            'data.max_tokens_x=101 .* data.row_length=100',
        ),
        (
            {'data.max_tokens_y': 64, 'model.max_length': 63},
            'data.max_tokens_y=64 .* model.max_length=63',
        ),
        ({'data.max_tokens_y': 2}, 'data.max_tokens_y=2 must be over 2'),
    ],
)
def test_inconsistent_lengths_are_refused(tiny, changes, words):
    with pytest.raises(UserError, match=words):
        lower_training_step(tiny(**changes), jax.devices(), trace=False)


def test_without_tracing_only_the_program_is_missing(tiny):
    step = lower_training_step(tiny(), jax.devices(), trace=False)
    assert step.lowered is None and step.parameters == sum(
        np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(step.state.params)
    )
    assert step.state.step.dtype == jnp.int32


@pytest.mark.parametrize('kind', ['bert', 'qwen3'])
def test_config_json_alone_gives_the_architecture(tiny, tmp_path, kind):
    folder = restore(read_golden('pretrained').facts['plain'][kind], tmp_path / 'whole')
    (tmp_path / 'alone').mkdir()
    shutil.copy(folder / 'config.json', tmp_path / 'alone')
    config = tiny()
    config['data'] |= {'max_tokens_x': 16, 'max_tokens_y': 16, 'row_length': 32}
    steps = []
    for name in ('whole', 'alone'):
        config['init_from'] = str(tmp_path / name)
        steps.append(lower_training_step(config, jax.devices(), trace=False))
    whole, alone = steps
    assert alone.parameters == whole.parameters > 0
    # The vocabulary is that of the tokenizer, or an id for each row.
    shape = dataclasses.replace(alone.encoder_config, vocab_size=whole.encoder_config.vocab_size)
    assert shape == whole.encoder_config


def test_trained_and_frozen_parameters_are_counted_separately(tiny):
    """With LoRA there are the parameters of the plain model and the adapters. Only the adapters
    have optimizer state. A frozen matrix takes 1/2 + 1/64 bytes per element.
    """
    plain = lower_training_step(tiny(), jax.devices()[:1], trace=False)
    step = lower_training_step(
        tiny(**{'lora.rank': 4, 'lora.base': 'nf4', 'model.remat': 'full'}),
        jax.devices()[:1],
        trace=False,
    )
    config = step.encoder_config
    per_rank_and_layer = (
        4 * (config.width + config.width)
        + 2 * (config.width + config.hidden)
        + (config.width + config.hidden if config.is_gated else 0)
    )
    assert (
        step.trained_parameters == 3 * 4 * per_rank_and_layer + 1
    )  # three layers, and the temperature
    assert step.parameters == plain.parameters + step.trained_parameters - 1
    assert count_device_bytes(step.state.optimizer) == 2 * 4 * step.trained_parameters + 2 * 4
    matrices = 3 * (
        4 * config.width**2 + (3 if config.is_gated else 2) * config.width * config.hidden
    )
    rest = 4 * (plain.parameters - 1 - matrices)  # embeddings and norms
    scales = count_device_bytes(step.state.frozen) - rest - matrices // 2 - matrices // 64
    assert 0 < scales < matrices / 1000
    assert step.model_flops < plain.model_flops
