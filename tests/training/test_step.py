"""Training gives equal results on any number of devices, any mesh and any number of chunks."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from cpt_jax.data.batch import make_local_batches, place_batch, plan_layout
from cpt_jax.runs.checkpoint import to_nested_dict
from cpt_jax.runs.config import flatten
from cpt_jax.runs.config_file import load_config
from cpt_jax.runtime.mesh import AXES
from cpt_jax.training import chunks
from cpt_jax.training.setup import set_up
from cpt_jax.training.step import StepPrograms, make_step
from tests.data.test_text_vectors import write_vectors

VECTORS = 'a directory with the vectors of all texts'


def write_all_vectors(config_file: Path, directory: Path) -> str:
    """Writes vectors of all texts of the pairs; returns the directory."""
    rows = map(json.loads, config_file.with_name('pairs.jsonl').read_text().splitlines())
    texts = {text: None for row in rows for text in (row['x'], row['y'], *row['negatives'])}
    write_vectors(directory, list(texts), shard_size=200)
    return str(directory)


def train_three_steps(config_file, tmp_path, devices: int, **changes):
    """Returns the losses and final parameters of three steps."""
    config = load_config(config_file)
    for key, value in changes.items():
        *sections, name = key.split('__')
        section = config
        for part in sections:
            section = section[part]
        if value is VECTORS:
            value = write_all_vectors(config_file, tmp_path / name)
        section[name] = value
    # Some gradients are zero up to rounding: the bias of keys shifts all logits of a softmax
    # equally. Adam divides by the root of the second moment, so with the usual epsilon it would
    # move such a parameter by the full learning rate, in a direction determined by rounding.
    config['optimizer']['epsilon'] = 1e-4
    run = set_up(config, tmp_path / 'run')
    if devices == 1:
        mesh = jax.make_mesh(
            (1, 1, 1), AXES, (jax.sharding.AxisType.Explicit,) * 3, devices=jax.devices()[:1]
        )
        layout = plan_layout(
            run.reader, mesh, run.train.batch_pairs, run.train.encode_chunks, run.data.row_length, 0
        )
        run = dataclasses.replace(run, mesh=mesh, layout=layout)
    losses, programs = [], StepPrograms(run)
    with jax.set_mesh(run.mesh):
        state = jax.jit(
            run.init,
            out_shardings=jax.tree.map(lambda leaf: leaf.sharding, run.make_abstract_state()),
        )()
        batches = make_local_batches(run.indices, run.reader, run.layout, run.mesh)
        for number in range(3):
            batch = place_batch(batches[number], run.mesh, run.layout)
            state, metrics = programs(state, batch)(state, batch)
            losses.append(float(metrics['loss']))
        assert float(metrics['pairs']) == run.train.batch_pairs
    return losses, dict(flatten(jax.device_get(to_nested_dict(state.params))))


@pytest.fixture(scope='module')
def one_device(config_file, tmp_path_factory):
    """A cached function that trains on one device in one chunk, with changes to the config."""
    return functools.cache(
        lambda **changes: train_three_steps(
            config_file, tmp_path_factory.mktemp('one'), devices=1, **changes
        )
    )


# Settings that change the results, and (below) ways to compute them, which must not.
PLAIN, DROPOUT = {}, {'model__dropout': 0.3}
NEGATIVES = {
    'data__negatives': 2,
    'loss__symmetric': False,
    'loss__dimensions': (8, 32),
    'loss__temperature_per_source': True,
    'loss__mask_margin': -0.1,
    'loss__guide': VECTORS,
    'loss__teacher': VECTORS,
    'loss__terms': (('kl', 0.5), ('margin_mse', 0.1), ('teacher_mse', 2.0)),
    'data__sources__pairs__scores': 'scores',
    'train__batch_pairs': 37,  # not divisible by any number of devices and chunks
    'model__pooling': 'mean',
    'model__causal': False,
}
LANGUAGE = {'objective': 'lm', 'train__batch_pairs': 37, 'model__dropout': 0.3}
WAYS = [
    (PLAIN, {'mesh__data': 1, 'mesh__fsdp': 8}),
    (
        PLAIN,
        {
            'mesh__data': 2,
            'mesh__tensor': 4,
            'train__encode_chunks': 4,
            'model__remat': 'full',
            'loss__form': 'chunked',
        },
    ),
    (PLAIN, {'train__encode_chunks': 2, 'model__remat': 'dots', 'model__layer_loop': 'scan'}),
    (
        DROPOUT,
        {
            'mesh__data': 2,
            'mesh__fsdp': 2,
            'mesh__tensor': 2,
            'train__encode_chunks': 4,
            'model__layer_loop': 'scan',
        },
    ),
    (
        DROPOUT,
        {'mesh__fsdp': 4, 'mesh__tensor': 2, 'data__packed': False, 'model__remat': 'full'},
    ),
    (
        NEGATIVES,
        {
            'mesh__data': 2,
            'mesh__fsdp': 2,
            'mesh__tensor': 2,
            'loss__form': 'chunked',
            'train__encode_chunks': 2,
        },
    ),
    (
        LANGUAGE,
        {
            'mesh__data': 2,
            'mesh__fsdp': 2,
            'mesh__tensor': 2,
            'train__encode_chunks': 2,
            'model__layer_loop': 'scan',
        },
    ),
]


@pytest.mark.parametrize(('settings', 'way'), WAYS, ids=str)
def test_every_mesh_and_chunking_trains_like_one_device(
    one_device, config_file, tmp_path, settings, way
):
    losses, params = train_three_steps(config_file, tmp_path, devices=8, **settings, **way)
    expected_losses, expected = one_device(**settings)
    # Float32 sums in another order differ by a relative 1e-6, which accumulates over the steps.
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-5)
    assert params.keys() == expected.keys() and len(expected) > 20
    for name, value in params.items():
        np.testing.assert_allclose(value, expected[name], atol=2e-5, err_msg=name)


def test_different_settings_have_different_losses(one_device):
    losses = [one_device(**settings)[0] for settings in (PLAIN, DROPOUT, NEGATIVES, LANGUAGE)]
    assert len({round(loss[0], 3) for loss in losses}) == 4


def test_gathering_weights_once_or_per_layer_gives_equal_results(
    one_device, config_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(chunks, 'MAX_PARAMETERS_REDUCED_ONCE', 0)
    losses, params = train_three_steps(
        config_file, tmp_path, devices=8, train__encode_chunks=4, mesh__fsdp=4
    )
    expected_losses, expected = one_device()
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-5)
    for name, value in params.items():
        np.testing.assert_allclose(value, expected[name], atol=2e-5, err_msg=name)


def test_each_source_has_a_temperature_of_its_own(config_file, tmp_path):
    config = load_config(config_file)
    (pairs,) = config['data']['sources'].values()
    config['data']['sources'] = {'a': pairs, 'b': pairs | {'x': 'y', 'y': 'x'}}
    config['loss']['temperature_per_source'] = True
    run = set_up(config, tmp_path / 'run')
    sources = [run.indices[number].source for number in range(2)]
    assert sorted(sources) == [0, 1]
    with jax.set_mesh(run.mesh):
        state = jax.jit(
            run.init,
            out_shardings=jax.tree.map(lambda leaf: leaf.sharding, run.make_abstract_state()),
        )()
        log_scale = state.params.log_scale
        log_scale[...] = jax.device_put(np.array([0.5, 2.5], np.float32), log_scale[...].sharding)
        step = jax.jit(make_step(run.objective, run.optimizer, run.schedule, 0))
        for number, source in enumerate(sources):
            batch = place_batch(
                make_local_batches(run.indices, run.reader, run.layout, run.mesh)[number],
                run.mesh,
                run.layout,
            )
            e_BxTxD, ids_BxTxZ = (
                jax.jit(chunks.encode)(state.params.encoder, batch),
                chunks.merge_chunks(batch.ids_JxBxTxZ),
            )
            expected, _ = jax.jit(run.objective.loss)(
                e_BxTxD, ids_BxTxZ, np.float32([0.5, 2.5][source])
            )
            after, metrics = step(state, batch)
            np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-5)
            np.testing.assert_allclose(metrics['scale'], np.exp([0.5, 2.5][source]), rtol=1e-6)
            (moments,) = (
                part.mu
                for part in jax.tree.leaves(after.optimizer, is_leaf=lambda p: hasattr(p, 'mu'))
                if hasattr(part, 'mu')
            )
            # The first moment is proportional to the gradient.
            moved = np.asarray(moments.log_scale[...]) != 0
            assert moved.tolist() == [source == 0, source == 1]
