"""The same training on any number of devices, in any mesh, in any number of chunks."""

import dataclasses

import jax
import numpy as np
import pytest

from cpt_jax.checkpoint import by_name
from cpt_jax.config import flatten
from cpt_jax.data.batch import local_batches, place, plan_layout
from cpt_jax.mesh import AXES
from cpt_jax.program import load_config
from cpt_jax.train.loop import compile_step
from cpt_jax.train.setup import set_up


def three_steps(config_file, tmp_path, devices: int, **changes):
    """Losses and final parameters of three steps."""
    config = load_config(config_file)
    for key, value in changes.items():
        section, name = key.split('__')
        config[section][name] = value
    # Adam divides by the root of the second moment: with a usual epsilon a gradient that is zero but for rounding (a key's bias shifts
    # all scores of a softmax alike) would move its parameter by the whole learning rate, in a direction that rounding decides.
    config['optimizer']['epsilon'] = 1e-4
    run = set_up(config, tmp_path / 'run')
    if devices == 1:
        mesh = jax.make_mesh((1, 1, 1), AXES, (jax.sharding.AxisType.Explicit,) * 3, devices=jax.devices()[:1])
        layout = plan_layout(run.texts, mesh, run.train.batch_pairs, run.train.encode_chunks, run.data.row_length, 0)
        run = dataclasses.replace(run, mesh=mesh, layout=layout)
    losses, step = [], None
    with jax.set_mesh(run.mesh):
        state = jax.jit(run.init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, run.abstract_state()))()
        batches = local_batches(run.indices, run.texts, run.layout, run.mesh)
        for number in range(3):
            batch = place(batches[number], run.mesh, run.layout)
            step = step or compile_step(run, state, batch)
            state, metrics = step(state, batch)
            losses.append(float(metrics['loss']))
        assert float(metrics['pairs']) == run.train.batch_pairs
    return losses, dict(flatten(jax.device_get(by_name(state.params))))


@pytest.fixture(scope='module')
def one_device(config_file, tmp_path_factory):
    return three_steps(config_file, tmp_path_factory.mktemp('one'), devices=1)


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'mesh__data': 1, 'mesh__fsdp': 8},
        {'mesh__data': 2, 'mesh__fsdp': 2, 'mesh__tensor': 2},
        {'mesh__data': 2, 'mesh__tensor': 4, 'train__encode_chunks': 4, 'model__remat': 'full'},
        {'train__encode_chunks': 2, 'model__remat': 'dots', 'model__layer_loop': 'scan'},
    ],
    ids=str,
)
def test_every_mesh_and_chunking_trains_like_one_device(one_device, config_file, tmp_path, changes):
    losses, params = three_steps(config_file, tmp_path, devices=8, **changes)
    # Float32 sums in another order: 1e-6 of each sum, a few times over.
    np.testing.assert_allclose(losses, one_device[0], rtol=2e-5)
    expected = one_device[1]
    assert params.keys() == expected.keys() and len(expected) > 20
    for name, value in params.items():
        np.testing.assert_allclose(value, expected[name], atol=2e-5, err_msg=name)
