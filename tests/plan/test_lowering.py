import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpt_jax.data.batch import place
from cpt_jax.loss.infonce import InfoNCE
from cpt_jax.plan.hlo.program import Module, parse
from cpt_jax.plan.lowering import device_bytes, longest_layout, lower
from cpt_jax.runtime.errors import UserError
from cpt_jax.training.contrastive import Contrastive
from cpt_jax.training.sections import Data, Train
from cpt_jax.training.setup import set_up
from cpt_jax.training.step import StepPrograms


def lines(module: Module) -> list[tuple]:
    """The whole program, but for where in the source it comes from."""
    return [
        (part.name, step.opcode, step.shape, step.operands, step.literal)
        for part in module.computations.values() for step in part.instructions.values()
    ]  # fmt: skip


def types(state) -> list:
    return [(leaf.shape, leaf.dtype, leaf.sharding) for leaf in jax.tree.leaves(state)]


def test_it_is_the_step_that_training_runs(tiny, tmp_path):
    """The same config through both doors, on the CPU: a run with its data, and the plan without."""
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
    # 'auto' is for TPUs in a plan.
    for_any = {'model.dtype': 'float32', 'model.layer_loop': 'scan', 'model.attention': 'masked'}
    same = for_any | {
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
        batch = place(next(run.batches_after(0)), run.mesh, run.layout)
        state = run.abstract_state()
        trained = parse(StepPrograms(run)(state, batch).as_text())
    config['data']['rows'] = run.layout.rows
    step = lower(config, jax.devices())
    assert step.layout == run.layout and step.mesh == run.mesh
    assert types(step.state) == types(state)
    assert lines(parse(step.lowered.compile().as_text())) == lines(trained)


def layout(data: dict, train: dict, parts: int = 4):
    sizes = {'max_tokens_x': 40, 'max_tokens_y': 60, 'row_length': 100} | data
    made = Data(sources={}, **sizes)
    return longest_layout(
        made,
        Train(**({'steps': 1, 'batch_pairs': 64} | train)),
        parts,
        Contrastive(InfoNCE()).longest(made),
    )


def test_without_data_every_text_is_as_long_as_it_may_be():
    plain = layout({}, {})
    assert (plain.parts, plain.chunks, plain.pairs, plain.texts, plain.rows, plain.tokens) == (
        4,
        1,
        16,
        2,
        16,
        4 * 16 * 100,
    )
    assert layout({'row_length': 64}, {}).rows == 32  # x and y do not fit in one row
    # Y and x share a row, the others have their own.
    assert layout({'negatives': 2}, {}).rows == 16 * 2 + 16
    assert layout({'packed': False}, {}).rows == 32
    assert layout({'rows': 5}, {}).rows == 5
    assert layout({}, {'encode_chunks': 2}).rows == 8


def test_batches_that_do_not_divide_are_filled_up():
    assert layout({}, {'batch_pairs': 65}).pairs == 17


def test_every_part_and_chunk_has_a_pair():
    with pytest.raises(UserError, match='train.batch_pairs=7 .* = 8'):
        layout({}, {'batch_pairs': 7, 'encode_chunks': 2})


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
def test_lengths_that_do_not_fit_together(tiny, changes, words):
    with pytest.raises(UserError, match=words):
        lower(tiny(**changes), jax.devices(), trace=False)


def test_without_tracing_there_is_all_but_the_program(tiny):
    step = lower(tiny(), jax.devices(), trace=False)
    assert step.lowered is None and step.parameters == sum(
        np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(step.state.params)
    )
    assert step.state.step.dtype == jnp.int32


def test_adapters_and_what_is_frozen_count_apart(tiny):
    """As many numbers as before and the adapters; optimizer state of these alone; the matrices in
    half a byte and a 64th.
    """
    whole = lower(tiny(), jax.devices()[:1], trace=False)
    step = lower(
        tiny(**{'lora.rank': 4, 'lora.base': 'nf4', 'model.remat': 'full'}),
        jax.devices()[:1],
        trace=False,
    )
    config = step.encoder_config
    ends = (
        4 * (config.width + config.width)
        + 2 * (config.width + config.hidden)
        + (config.width + config.hidden if config.gated else 0)
    )
    assert step.trained == 3 * 4 * ends + 1  # of three layers, and the temperature
    assert step.parameters == whole.parameters + step.trained - 1
    assert device_bytes(step.state.optimizer) == 2 * 4 * step.trained + 2 * 4
    matrices = 3 * (4 * config.width**2 + (3 if config.gated else 2) * config.width * config.hidden)
    rest = 4 * (whole.parameters - 1 - matrices)  # embeddings and norms
    scales = device_bytes(step.state.frozen) - rest - matrices // 2 - matrices // 64
    assert 0 < scales < matrices / 1000
    assert step.model_flops < whole.model_flops
