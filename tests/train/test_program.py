"""launch/train.py as a user runs it: killed, stopped, started again, on two processes, with wrong input."""

import contextlib
import functools
import json
import re
import shutil
import signal
import socket
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from cpt_jax import checkpoint
from cpt_jax.config import flatten
from cpt_jax.errors import UserError
from cpt_jax.program import load_config
from cpt_jax.tokenizer import train_tokenizer
from cpt_jax.train.setup import set_up
from tests.train.conftest import start

TIMES = {'seconds', 'paused_seconds', 'pairs_per_second', 'tokens_per_second'}


def rows(workdir: Path, without: str = 'nothing') -> list[dict]:
    """The rows of metrics.jsonl without what a clock says, and without keys that begin so."""
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    kept = lambda key: key not in TIMES and not key.startswith(without)  # noqa: E731
    return [{key: value for key, value in json.loads(line).items() if kept(key)} for line in lines]


def parameters(workdir: Path, step: int) -> dict:
    """All arrays of a checkpoint's state, by name."""
    path = workdir / 'checkpoints' / str(step)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), ocp.metadata(path).metadata)
    return dict(flatten(jax.tree.map(np.asarray, ocp.load_checkpointables(path, {'state': abstract})['state'])))


def assert_same(a: Path, b: Path, step: int, without: str = 'nothing') -> None:
    assert rows(a, without) == rows(b, without)
    first, second = parameters(a, step), parameters(b, step)
    assert first.keys() == second.keys() and len(first) > 60
    for name in first:
        assert np.array_equal(first[name], second[name]), name


def finish(process) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def wait_for_rows(workdir: Path, count: int, process) -> None:
    """Until metrics.jsonl has so many rows."""
    deadline = time.time() + 200
    while not (workdir / 'metrics.jsonl').exists() or len((workdir / 'metrics.jsonl').read_text().splitlines()) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.time() < deadline
        time.sleep(0.005)


@pytest.fixture(scope='module')
def finished(config_file, tmp_path_factory) -> Path:
    """The directory of a run of eight steps, with checkpoints of steps 4 and 8; tests copy it."""
    folder = tmp_path_factory.mktemp('finished')
    finish(start(config_file, folder, 'run', '--config.train.steps=8', '--config.evaluation.every_steps=0'))
    return folder / 'run'


def test_killed_runs_end_as_one_that_was_not(launch, tmp_path):
    finish(launch('whole'))
    for kill_after in (2, 9):
        process = launch('killed')
        wait_for_rows(tmp_path / 'killed', kill_after, process)
        process.kill()
        process.wait()
    output = finish(launch('killed'))
    assert 'step 0 of 12' not in output  # it went on from a checkpoint
    assert output.splitlines()[-1].startswith('done: step 12 is in ') and 'launch/evaluate.py --tasks TASKS --model=' in output
    assert_same(tmp_path / 'whole', tmp_path / 'killed', 12)
    assert [row['step'] for row in rows(tmp_path / 'killed')] == list(range(1, 13))


def test_sigterm_saves_and_exits_with_42_and_the_same_command_goes_on(launch, tmp_path):
    more = '--config.train.steps=3000', '--config.optimizer.warmup_steps=2', '--config.evaluation.every_steps=0'
    process = launch('run', *more, '--config.checkpoint.every_steps=100000')
    wait_for_rows(tmp_path / 'run', 3, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 42, output
    (step,) = checkpoint.steps_in(tmp_path / 'run' / 'checkpoints')
    assert step == rows(tmp_path / 'run')[-1]['step'] and f'saved step {step}' in output
    output = finish(launch('run', f'--config.train.steps={step + 2}', '--config.evaluation.every_steps=0'))
    assert f'step {step} of {step + 2}' in output and 'train.steps: 3000 ->' in output


def test_init_from_starts_with_the_parameters_and_the_tokenizer_of_another_run(launch, tmp_path, finished):
    shutil.copytree(finished, tmp_path / 'first')
    finish(launch('second', '--config.init_from=first@8', '--config.train.steps=3', '--config.optimizer.peak_lr=0.0', '--config.seed=1'))
    first, second = parameters(tmp_path / 'first', 8), parameters(tmp_path / 'second', 3)
    for name in first:
        if name.startswith('params'):  # at a learning rate of 0 nothing moves
            assert np.array_equal(first[name], second[name]), name
    tokenizers = [(tmp_path / run / 'tokenizer' / 'tokenizer.model').read_bytes() for run in ('first', 'second')]
    assert tokenizers[0] == tokenizers[1]
    line = error_of(launch('third', '--config.init_from=first', '--config.model.width=64', '--config.train.steps=3'))
    assert 'init_from=first: its model is not of the shape of this config' in line


def free_address() -> str:
    with socket.socket() as free:
        free.bind(('localhost', 0))
        return f'localhost:{free.getsockname()[1]}'


def test_two_processes_train_as_one(launch, tmp_path):
    finish(launch('one', '--config.train.steps=3', devices=2))
    flags = '--config.train.steps=3', f'--coordinator={free_address()}', '--processes=2'
    both = [launch('two', *flags, f'--process={i}') for i in range(2)]
    for process in both:
        finish(process)
    one, two = rows(tmp_path / 'one'), rows(tmp_path / 'two')
    # Gloo and one process add two numbers alike; the programs are compiled apart, and may fuse products and sums in another way.
    np.testing.assert_allclose([row['loss'] for row in two], [row['loss'] for row in one], rtol=1e-6)
    first, second = parameters(tmp_path / 'one', 3), parameters(tmp_path / 'two', 3)
    for name in first:
        if name.startswith('params') and not name.endswith('key_bias'):  # whose gradient is zero but for rounding; see test_step.py
            np.testing.assert_allclose(second[name], first[name], atol=2e-5, err_msg=name)


def together(launch, workdir: str, count: int, *flags: str, devices: int) -> list:
    """So many processes of one run."""
    flags = *flags, f'--coordinator={free_address()}', f'--processes={count}'
    return [launch(workdir, *flags, f'--process={i}', devices=devices) for i in range(count)]


# An evaluation and a save at each step, so that a step takes long enough for a signal to come before the last, most likely within an
# evaluation; epsilon: see test_step.py.
STOPPABLE = (
    '--config.evaluation.every_steps=1',
    '--config.checkpoint.every_steps=1',
    '--config.train.steps=14',
    '--config.optimizer.epsilon=1e-4',
)


def test_sigterm_to_one_process_stops_all_and_the_run_goes_on_with_any_number(launch, tmp_path):
    """Stopped on 2 processes, all saving the same step; gone on with by 2, to the bit, and by 1 on another mesh: as if never stopped."""
    whole, two, alone = (tmp_path / name for name in ('whole', 'two', 'alone'))
    split = *STOPPABLE, '--config.mesh.fsdp=4'  # parameters lie over both processes
    finish_all(together(launch, 'whole', 2, *split, devices=2))
    processes = together(launch, 'two', 2, *split, devices=2)
    wait_for_rows(two, 6, processes[0])
    processes[1].send_signal(signal.SIGTERM)
    for process in processes:
        output, _ = process.communicate(timeout=100)
        assert process.returncode == 42, output
    step = checkpoint.steps_in(two / 'checkpoints')[-1]
    assert 6 <= step < 14 and rows(two)[-1]['step'] == step
    shutil.copytree(two, alone)
    finish_all(together(launch, 'two', 2, *split, devices=2))
    assert_same(whole, two, 14, without='heldout')  # to the bit: the same processes add in the same order
    finish(launch('alone', *STOPPABLE, '--config.mesh.fsdp=2', '--config.train.encode_chunks=2', devices=4))
    assert_close(whole, alone, 14)


def finish_all(processes: list) -> None:
    for process in processes:
        finish(process)


def assert_close(a: Path, b: Path, step: int) -> None:
    """Other processes, meshes and chunks add in another order: float32 rounds by 1e-7 of a sum, and Adam carries it on."""
    first, second = rows(a), rows(b)
    assert [row['step'] for row in first] == [row['step'] for row in second] == list(range(1, step + 1))
    np.testing.assert_allclose([row['loss'] for row in second], [row['loss'] for row in first], rtol=1e-4)
    first, second = parameters(a, step), parameters(b, step)
    for name in first:
        if name.startswith('params'):
            np.testing.assert_allclose(second[name], first[name], atol=1e-4, err_msg=name)


def test_a_process_that_cannot_start_ends_all_with_its_line(launch, config_file, tmp_path):
    """The second one has no data where it looks for them."""
    (tmp_path / 'elsewhere').mkdir()
    shutil.copy(config_file.with_name('pairs.jsonl'), tmp_path)
    flags = '--config.data.sources.pairs.path=pairs.jsonl', f'--coordinator={free_address()}', '--processes=2'
    one, two = launch('run', *flags), launch('run', *flags, '--process=1', cwd=tmp_path / 'elsewhere')
    for process, said in [(one, 'process 1 stopped: data.sources.pairs: path: '), (two, 'data.sources.pairs: path: ')]:
        output, _ = process.communicate(timeout=100)
        assert process.returncode == 1 and 'Traceback' not in output and output.splitlines()[-1].startswith(f'error: {said}'), output


def error_of(process) -> str:
    """The one line of a user's mistake."""
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1, output
    lines = [line for line in output.splitlines() if not line.startswith('indexing')]
    assert lines[-1].startswith('error: ') and 'Traceback' not in output, output
    return lines[-1]


# What only the program sees, and one mistake in a file: the other values go straight to what reads the config.
@pytest.mark.parametrize(
    ('flag', 'expected'),
    [
        ('--config.train.stepz=4', r'no key .*stepz.*steps'),
        ('--config.train.accumulation_steps=4', r'Gradient accumulation is not offered: .*train\.encode_chunks'),
        ('--config.data.sources.pairs.path=broken.jsonl', r'broken\.jsonl:2: not JSON'),
        ('--workdir=gs://bucket/run', 'only paths of the file system'),
    ],
)
def test_wrong_input_is_one_line(launch, tmp_path, flag, expected):
    (tmp_path / 'broken.jsonl').write_text('{"x": "a b c", "y": "d e f"}\n{"x": "a b\n' * 40)
    assert re.search(expected, error_of(launch('run', flag, devices=8)))


@pytest.mark.parametrize(
    ('key', 'value', 'expected'),
    [
        ('data.sources.pairs.path', '/nowhere/pairs', '/nowhere/pairs'),
        ('data.sources.pairs.path', 'empty.jsonl', 'no pairs in'),
        ('mesh.data', 3, r'mesh\.data=3 .* does not divide the 8 devices'),
        ('train.batch_pairs', 6, r'train\.batch_pairs=6 is less than .* 8'),
        ('train.batch_pairs', 512, 'fewer than train.batch_pairs=512'),
        ('loss.form', 'rings', "loss.form='rings'"),
        ('model.norm', 'batch', "model.norm='batch'"),
        ('data.max_tokens_x', 64, 'data.max_tokens_x=64'),
        ('data.rows', -1, 'data.rows=-1: must be 0 or more'),
        ('data.sources.pairs.holdout', 2.0, 'holdout=2: must be a share'),
        ('mesh.tensor', 8, 'mesh.tensor=8 does not divide model.heads=4'),
        ('optimizer.warmup_steps', 50, 'optimizer.warmup_steps=50'),
        ('tokenizer.path', '/nowhere/tokenizer.json', '/nowhere/tokenizer.json'),
        ('init_from', '/nowhere/run', 'init_from /nowhere/run'),
    ],
)
def test_a_config_that_cannot_be_used_is_told_by_its_key(config_file, tmp_path, tokenizer, key, value, expected):
    config = load_config(config_file)
    tokenizer.save(tmp_path / 'own')
    config['tokenizer']['path'] = str(tmp_path / 'own') if key != 'init_from' else ''  # made once, and not for each of these
    (tmp_path / 'empty.jsonl').write_text('')
    *sections, name = key.split('.')
    functools.reduce(dict.__getitem__, sections, config)[name] = value
    with contextlib.chdir(tmp_path), pytest.raises(UserError, match=expected):
        set_up(config, Path('run'))


def test_a_workdir_of_another_config_is_refused_by_key(launch, tmp_path, finished):
    shutil.copytree(finished, tmp_path / 'run')
    line = error_of(launch('run', '--config.train.steps=8', '--config.optimizer.peak_lr=0.5'))
    assert 'optimizer.peak_lr was 0.003 and is 0.5' in line
    (tmp_path / 'run' / 'tokenizer' / 'tokenizer.model').write_bytes(b'')  # as a kill in the middle of writing it might leave it
    finish(launch('run', '--config.train.steps=9', '--config.evaluation.every_steps=0'))
    assert (tmp_path / 'run' / 'tokenizer' / 'tokenizer.model').stat().st_size > 1000


def test_the_newest_checkpoint_without_its_metadata_is_passed_over(launch, tmp_path, finished):
    shutil.copytree(finished, tmp_path / 'run')
    (tmp_path / 'run' / 'checkpoints' / '8' / '_CHECKPOINT_METADATA').write_text('{"item_')
    for path in (tmp_path / 'run' / 'checkpoints' / '8' / 'state').rglob('*'):
        if path.is_file():
            path.write_bytes(b'')
    output = finish(launch('run', '--config.train.steps=8', '--config.evaluation.every_steps=0'))
    assert 'checkpoint 8 cannot be read: the one before it is taken' in output and 'step 4 of 8' in output
    assert checkpoint.steps_in(tmp_path / 'run' / 'checkpoints') == [4, 8]


def test_another_tokenizer_than_the_runs_is_refused(launch, config_file, tmp_path, tokenizer):
    tokenizer.save(tmp_path / 'own')
    finish(launch('run', '--config.tokenizer.path=own', '--config.train.steps=3', '--config.evaluation.every_steps=0'))
    config = load_config(config_file)
    own = config | {'tokenizer': config['tokenizer'] | {'path': 'own'}}
    other = train_tokenizer(
        ['a b c d'] * 9, vocab_size=290, model_type='bpe', normalization='identity', whitespace='prefix', characters=99, seed=0
    )
    other.save(tmp_path / 'own')
    with contextlib.chdir(tmp_path):
        for workdir, init_from in [('run', ''), ('new', 'run')]:
            with pytest.raises(UserError, match='tokenizer.path=own is not the tokenizer'):
                set_up(own | {'init_from': init_from}, Path(workdir))


def test_parameters_that_are_no_numbers_stop_the_run_and_are_not_saved(launch, tmp_path):
    # The rate of the first step is 0, of the second 5e29: its loss is that of good parameters, what it leaves is not.
    line = error_of(launch('run', '--config.optimizer.peak_lr=1e30', '--config.checkpoint.every_steps=1'))
    assert 'at step 2 ' in line and 'the checkpoint of step 1 stays' in line
    assert checkpoint.steps_in(tmp_path / 'run' / 'checkpoints') == [1]
    finish(launch('again', '--config.init_from=run@1', '--config.train.steps=4'))
    assert all(np.isfinite(row['loss']) for row in rows(tmp_path / 'again'))


def test_processes_with_other_data_do_not_train_together(launch, config_file, tmp_path):
    rows_of_the_other = config_file.with_name('pairs.jsonl').read_text().splitlines()[:280]
    (tmp_path / 'other.jsonl').write_text('\n'.join(rows_of_the_other))
    flags = f'--coordinator={free_address()}', '--processes=2'
    one = launch('run', *flags, '--process=0')
    two = launch('run', *flags, '--process=1', f'--config.data.sources.pairs.path={tmp_path / "other.jsonl"}')
    for process in (one, two):
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 1 and 'the processes differ in config, sources' in output and 'Traceback' not in output, output
    assert not (tmp_path / 'run').exists()


def test_several_processes_need_a_coordinator(launch):
    assert '--processes=2 --process=1 need --coordinator' in error_of(launch('run', '--processes=2', '--process=1'))
