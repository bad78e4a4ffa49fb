"""launch/train.py as a user runs it: killed, stopped, resumed, on two processes, with bad input.

Starting the program takes seconds of CPU time. Tests that need no signal, no exit status and no
second process therefore train in this process (`train_here`).
"""

import contextlib
import errno
import functools
import json
import os
import re
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from cpt_jax.runs import checkpoint
from cpt_jax.runs.config import flatten
from cpt_jax.runs.config_file import load_config
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.paths import as_path
from cpt_jax.text.tokenizer import train_tokenizer
from cpt_jax.training import loop
from cpt_jax.training.setup import set_up
from cpt_jax.training.timing import TIMING_FIELDS
from tests.programs import Program, finish, make_environment
from tests.training.conftest import start, write_config

pytestmark = pytest.mark.usefixtures('persistent_compilation_cache')


def read_rows(workdir: Path, without: str = 'none') -> list[dict]:
    """Returns the rows of metrics.jsonl after step 0, without times and keys that start with
    `without`.
    """
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()

    def is_kept(key):
        return key not in TIMING_FIELDS and not key.startswith(without)

    rows = [json.loads(line) for line in lines]
    return [
        {key: value for key, value in row.items() if is_kept(key)} for row in rows if row['step']
    ]


def load_parameters(workdir: Path, step: int) -> dict:
    """Returns all arrays of a checkpoint's state, by name."""
    path = workdir / 'checkpoints' / str(step)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        ocp.metadata(path).metadata,
    )
    return dict(
        flatten(
            jax.tree.map(np.asarray, ocp.load_checkpointables(path, {'state': abstract})['state'])
        )
    )


def assert_same(a: Path, b: Path, step: int, without: str = 'none') -> None:
    assert read_rows(a, without) == read_rows(b, without)
    first, second = load_parameters(a, step), load_parameters(b, step)
    assert first.keys() == second.keys() and len(first) > 60
    for name in first:
        assert np.array_equal(first[name], second[name]), name


def wait_for_rows(workdir: Path, count: int, process: Program) -> None:
    """Waits until metrics.jsonl has `count` rows besides that of step 0."""
    deadline = time.time() + 200
    while (
        not (workdir / 'metrics.jsonl').exists()
        or len((workdir / 'metrics.jsonl').read_text().splitlines()) < 1 + count
    ):
        assert process.poll() is None, process.communicate()[0]
        assert time.time() < deadline
        time.sleep(0.005)


def wait_for_checkpoint(workdir: Path, process: Program) -> None:
    """Waits until a checkpoint is complete."""
    deadline = time.time() + 100
    while not checkpoint.list_steps(workdir / 'checkpoints'):
        assert process.poll() is None, process.communicate()[0]
        assert time.time() < deadline
        time.sleep(0.05)


@pytest.fixture(scope='module')
def config_file(tmp_path_factory) -> Path:
    """A config with one layer, because every start traces the model again. test_step.py tests the
    layer loop and the last layer.
    """
    return write_config(tmp_path_factory.mktemp('config'), layers=1)


@pytest.fixture(scope='module')
def finished(config_file, tmp_path_factory) -> Path:
    """The directory of an uninterrupted run of twelve steps, with checkpoints of steps 8 and 12;
    tests copy it.
    """
    folder = tmp_path_factory.mktemp('finished')
    output = finish(start(config_file, folder, 'run'))
    assert output.splitlines()[-1].startswith('done: step 12 is in ')
    return folder / 'run'


@pytest.fixture
def train_here(config_file):
    """A function that trains in this process, on its eight devices, with changed config keys, and
    returns the exit status.
    """

    return functools.partial(train_with_changes, config_file)


def train_with_changes(config_file: Path, workdir: Path, changes: dict[str, Any]) -> int:
    config = load_config(config_file)
    for key, value in changes.items():
        set_key(config, key, value)
    return loop.train(config, workdir)


def set_key(config: dict, key: str, value: object) -> None:
    *sections, name = key.split('.')
    section = functools.reduce(dict.__getitem__, sections, config)
    assert name in section
    section[name] = value


@pytest.mark.parametrize('storage', ['disk', 'bucket'])
def test_killed_run_ends_like_an_uninterrupted_one(launch, tmp_path, request, finished, storage):
    workdir = tmp_path / 'killed'
    kills = [2, 9]
    if storage == 'bucket':
        workdir = as_path(request.getfixturevalue('gs_bucket')) / 'killed'
        kills = [4]
    for kill_after in kills:
        process = launch(str(workdir))
        wait_for_rows(workdir, kill_after, process)
        if storage == 'bucket':  # slower than the steps, so the kill is likely during the next save
            wait_for_checkpoint(workdir, process)
        process.kill()
        process.wait()
        if storage == 'bucket':  # instead of waiting a minute; see tests/storage/test_lease.py
            RunDir(workdir).owner.unlink()
    output = finish(launch(str(workdir)))
    assert 'step 0 of 12' not in output  # it resumed from a checkpoint
    assert (
        output.splitlines()[-1].startswith('done: step 12 is in ')
        and 'launch/evaluate.py --tasks TASKS --model=' in output
    )
    assert_same(finished, workdir, 12)
    assert [row['step'] for row in read_rows(workdir)] == list(range(1, 13))
    names = {path.name for path in workdir.iterdir()}
    assert names == {path.name for path in finished.iterdir()}
    assert not any(path.name.startswith('gs:') for path in tmp_path.iterdir())


@pytest.mark.parametrize('storage', ['disk', 'bucket'])
def test_second_training_is_refused_and_the_first_ends_as_if_alone(
    config_file, tmp_path, request, finished, storage
):
    workdir = tmp_path / 'run'
    if storage == 'bucket':
        workdir = as_path(request.getfixturevalue('gs_bucket')) / 'run'
    (tmp_path / 'hold').touch()  # the first one waits in a step
    given = '--config', str(config_file), '--workdir', str(workdir)
    script = Path(__file__).parent / 'scripts' / 'train_watched.py'
    first = Program(script, given, tmp_path, make_environment(devices=1))
    deadline = time.monotonic() + 100
    while not RunDir(workdir).metrics.exists():
        assert first.poll() is None and time.monotonic() < deadline, first.communicate()[0]
        time.sleep(0.05)
    second = start(config_file, tmp_path, str(workdir))
    output = finish(second, status=1)
    line = (
        rf'error: --workdir {workdir}: is being trained by process \d+ on \S+ \(since .*\): wait '
    )
    assert re.match(line, output.splitlines()[-1]) and 'Traceback' not in output
    (tmp_path / 'hold').unlink()
    finish(first)
    assert_same(finished, workdir, 12)
    assert [row['step'] for row in read_rows(workdir)] == list(range(1, 13))
    assert {path.name for path in workdir.iterdir()} == {path.name for path in finished.iterdir()}


def test_run_needs_no_renaming(train_here, tmp_path, monkeypatch):
    """Some mounted buckets cannot rename files or folders."""

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOTSUP, 'Operation not supported')

    for name in ('rename', 'replace', 'renames'):
        monkeypatch.setattr(os, name, refuse)
    assert train_here(tmp_path / 'run', NINE_STEPS | {'train.steps': 3}) == 0
    assert train_here(tmp_path / 'run', NINE_STEPS | {'train.steps': 4}) == 0
    assert checkpoint.list_steps(tmp_path / 'run' / 'checkpoints') == [3, 4]
    assert len(read_rows(tmp_path / 'run')) == 4
    assert not [path for path in (tmp_path / 'run').rglob('*') if path.suffix == '.part']


def test_sigterm_saves_and_exits_with_42_and_the_run_resumes(launch, train_here, tmp_path, capsys):
    flags = (
        '--config.train.steps=3000',
        '--config.optimizer.warmup_steps=2',
        '--config.evaluation.every_steps=0',
    )
    process = launch('run', *flags, '--config.checkpoint.every_steps=100000')
    wait_for_rows(tmp_path / 'run', 3, process)
    process.send_signal(signal.SIGTERM)
    output = finish(process, status=42)
    (step,) = checkpoint.list_steps(tmp_path / 'run' / 'checkpoints')
    assert step == read_rows(tmp_path / 'run')[-1]['step'] and f'saved step {step}' in output
    changes = {'train.steps': step + 2, 'evaluation.every_steps': 0}
    assert train_here(tmp_path / 'run', changes) == 0
    output = capsys.readouterr().out
    assert f'step {step} of {step + 2}' in output and 'train.steps: 3000 ->' in output


def test_init_from_starts_with_the_parameters_and_the_tokenizer_of_another_run(
    train_here, tmp_path, finished
):
    changes = {'train.steps': 3, 'optimizer.peak_lr': 0.0, 'seed': 1}
    assert train_here(tmp_path / 'second', {'init_from': f'{finished}@8'} | changes) == 0
    first, second = load_parameters(finished, 8), load_parameters(tmp_path / 'second', 3)
    for name in first:
        if name.startswith('params'):  # unchanged at a learning rate of 0
            assert np.array_equal(first[name], second[name]), name
    tokenizers = [
        (run / 'tokenizer' / 'tokenizer.model').read_bytes()
        for run in (finished, tmp_path / 'second')
    ]
    assert tokenizers[0] == tokenizers[1]
    line = f'init_from={finished}: its model does not have the shapes of this config'
    with pytest.raises(UserError, match=re.escape(line)):
        train_here(tmp_path / 'third', {'init_from': str(finished), 'model.width': 64})


def free_address() -> str:
    with socket.socket() as free:
        free.bind(('localhost', 0))
        return f'localhost:{free.getsockname()[1]}'


def launch_processes(
    launch, workdir: str, *flags: str, devices: int, count: int = 2
) -> list[Program]:
    """Starts the processes of one run, with `devices` devices each."""
    flags = *flags, f'--coordinator={free_address()}', f'--processes={count}'
    return [launch(workdir, *flags, f'--process={i}', devices=devices) for i in range(count)]


# No evaluations, which would compile more programs. For epsilon, see test_step.py.
NINE_STEPS = {
    'evaluation.every_steps': 0,
    'evaluation.pairs': 16,
    'checkpoint.every_steps': 3,
    'checkpoint.keep_every': 3,
    'train.steps': 9,
    'optimizer.epsilon': 1e-4,
    'model.pooling': 'mean',  # over texts that two processes pack
}
COPIES = [f'--config.{key}={value}' for key, value in NINE_STEPS.items()]
# Another mesh than those of several processes.
ONE_PROCESS = NINE_STEPS | {'mesh.fsdp': 2, 'train.encode_chunks': 2}
# The parameters are sharded over all devices of both processes.
SPLIT = [*COPIES, '--config.mesh.fsdp=4']
# An evaluation and a save at each step, so that steps take long enough for a signal to arrive
# before the last one, most likely during an evaluation.
STOPPABLE = '--config.evaluation.every_steps=1', '--config.checkpoint.every_steps=1'


# Three sources with three losses.
THREE_SOURCES = """
    pairs = {**c.data.sources['pairs'], 'holdout': 0.0}
    c.data.sources = {
        'pairs': pairs | {'holdout': 0.2, 'direction': 'yx'},
        'listed': pairs | {'in_batch': False, 'scores': 'scores', 'terms': (('kl', 0.5),)},
        'graded': pairs
        | {'infonce': 0.0, 'score': 'score', 'terms': (('cosent', 1.0),), 'temperature': 0.1},
    }
    c.data.negatives = 2
    c.loss.mask_margin = 0.1
    return c
"""


@pytest.fixture(scope='module')
def three_sources(tmp_path_factory) -> Path:
    config = write_config(tmp_path_factory.mktemp('three'), layers=1)
    config.write_text(config.read_text().replace('    return c\n', THREE_SOURCES))
    return config


@pytest.fixture(scope='module')
def finished_by_two(three_sources, tmp_path_factory) -> Path:
    """The directory of an uninterrupted run of two processes with two devices each."""
    folder = tmp_path_factory.mktemp('finished_by_two')
    launch = functools.partial(start, three_sources, folder)
    finish_all(launch_processes(launch, 'run', *SPLIT, devices=2))
    return folder / 'run'


def test_one_two_and_four_processes_train_alike(three_sources, finished_by_two, tmp_path):
    """One process trains from the start, and four resume the run of two after step 3. The four
    have copies of the model, whose parameters the two share, and batches of several row counts,
    which they agree on.
    """
    one, four = tmp_path / 'one', shutil.copytree(finished_by_two, tmp_path / 'four')
    for step in (6, 9):
        shutil.rmtree(four / 'checkpoints' / str(step))
    assert train_with_changes(three_sources, one, ONE_PROCESS | {'train.steps': 3}) == 0
    # The first process's clock decides when all save.
    timed = '--config.checkpoint.every_minutes=1e-9', '--config.checkpoint.keep_latest=3'
    changed = *timed, '--config.data.row_choices=4'
    launch = functools.partial(start, three_sources, tmp_path)
    finish_all(launch_processes(launch, 'four', *COPIES, *changed, devices=1, count=4))
    later = [row for row in read_rows(four) if row['step'] > 3]
    assert len({round(row['tokens'] / (1 - row['padding_share'])) for row in later}) > 1
    assert checkpoint.list_steps(four / 'checkpoints') == [3, 6, 7, 8, 9]
    assert_close(finished_by_two, four, 9)
    for run, steps in [(one, [1, 2, 3]), (four, [4, 5, 6])]:
        rows, expected = (
            [row for row in read_rows(workdir) if row['step'] in steps]
            for workdir in (run, finished_by_two)
        )
        assert [row['step'] for row in rows] == steps
        # Adding two numbers gives the same result over Gloo as in one process, but the programs are
        # compiled separately and may fuse products and sums differently.
        np.testing.assert_allclose(
            [row['loss'] for row in rows], [row['loss'] for row in expected], rtol=1e-6
        )
        first, second = (load_parameters(path, steps[-1]) for path in (run, finished_by_two))
        for name in first:
            if name.startswith('params'):
                np.testing.assert_allclose(second[name], first[name], atol=2e-5, err_msg=name)


def test_sigterm_to_one_process_stops_all_and_the_run_resumes_on_any_number(
    three_sources, finished_by_two, tmp_path
):
    """Both processes save the same step. Resumed on two processes, the run ends with exactly the
    parameters of an uninterrupted run; resumed on one process and another mesh, with close ones.
    """
    launch = functools.partial(start, three_sources, tmp_path)
    two, one = tmp_path / 'two', tmp_path / 'one'
    processes = launch_processes(launch, 'two', *SPLIT, *STOPPABLE, devices=2)
    wait_for_rows(two, 2, processes[0])
    processes[1].send_signal(signal.SIGTERM)
    for process in processes:
        finish(process, status=42)
    step = checkpoint.list_steps(two / 'checkpoints')[-1]
    assert 2 <= step < 9 and read_rows(two)[-1]['step'] == step
    shutil.copytree(two, one)
    finish_all(launch_processes(launch, 'two', *SPLIT, devices=2))
    # Bitwise equal, because the same processes add in the same order.
    assert_same(finished_by_two, two, 9, without='heldout')
    assert train_with_changes(three_sources, one, ONE_PROCESS) == 0
    assert_close(finished_by_two, one, 9)


def finish_all(processes: list[Program]) -> None:
    for process in processes:
        finish(process)


def assert_close(a: Path, b: Path, step: int) -> None:
    """Asserts that two runs are equal up to rounding.

    Other processes, meshes and chunks add in another order: float32 sums differ by a relative 1e-7,
    which Adam amplifies over the steps.
    """
    first, second = read_rows(a), read_rows(b)
    assert (
        [row['step'] for row in first]
        == [row['step'] for row in second]
        == list(range(1, step + 1))
    )
    np.testing.assert_allclose(
        [row['loss'] for row in second], [row['loss'] for row in first], rtol=1e-4
    )
    first, second = load_parameters(a, step), load_parameters(b, step)
    for name in first:
        if name.startswith('params'):
            np.testing.assert_allclose(second[name], first[name], atol=1e-4, err_msg=name)


def test_process_that_cannot_start_stops_all_with_its_error(launch, config_file, tmp_path):
    """The second process does not find its data."""
    (tmp_path / 'elsewhere').mkdir()
    shutil.copy(config_file.with_name('pairs.jsonl'), tmp_path)
    flags = (
        '--config.data.sources.pairs.path=pairs.jsonl',
        f'--coordinator={free_address()}',
        '--processes=2',
    )
    one, two = (
        launch('run', *flags),
        launch('run', *flags, '--process=1', cwd=tmp_path / 'elsewhere'),
    )
    for process, message in [
        (one, 'process 1 stopped: data.sources.pairs: path: '),
        (two, 'data.sources.pairs: path: '),
    ]:
        output = finish(process, status=1)
        assert 'Traceback' not in output
        assert output.splitlines()[-1].startswith(f'error: {message}')


def read_error(process: Program) -> str:
    """Returns the one-line error message of a process that fails with a user error."""
    output = finish(process, status=1)
    lines = [line for line in output.splitlines() if not line.startswith('indexing')]
    assert lines[-1].startswith('error: ') and 'Traceback' not in output, output
    return lines[-1]


# Errors in flags, which only the program can detect, and one in a data file. Other config values
# are tested below, without starting the program.
@pytest.mark.parametrize(
    ('flag', 'expected'),
    [
        ('--config.train.stepz=4', r'no key .*stepz.*steps'),
        (
            '--config.train.accumulation_steps=4',
            r'Gradient accumulation is not offered: .*train\.encode_chunks',
        ),
        ('--config.data.sources.pairs.path=broken.jsonl', r'broken\.jsonl:2: not JSON'),
        ('--workdir=s3://bucket/run', 'only paths of the file system'),
    ],
)
def test_invalid_input_is_a_one_line_error(launch, tmp_path, flag, expected):
    (tmp_path / 'broken.jsonl').write_text('{"x": "a b c", "y": "d e f"}\n{"x": "a b\n' * 40)
    assert re.search(expected, read_error(launch('run', flag, devices=8)))


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
        ('data.sources.pairs.holdout', 2.0, 'holdout=2: must be a fraction'),
        ('mesh.tensor', 8, 'mesh.tensor=8 does not divide model.heads=4'),
        ('optimizer.warmup_steps', 50, 'optimizer.warmup_steps=50'),
        ('tokenizer.path', '/nowhere/tokenizer.json', '/nowhere/tokenizer.json'),
        ('init_from', '/nowhere/run', 'init_from /nowhere/run'),
        ('seed', 10**20, 'seed=100000000000000000000: must be an integer'),
        ('seed', -1, 'seed=-1: must be from 0 to 4,294,967,295'),
        ('model.layers', 10**20, 'model.layers=100000000000000000000: must be an integer'),
        ('model.layers', 10**9, 'model.layers=1000000000: must be at most 10,000'),
        ('loss.dimensions', None, 'loss.dimensions=None: must be a sequence'),
        ('train.steps', 2**40, 'train.steps=1099511627776: must be at most 2,147,483,647'),
        ('data.row_length', 10**9, 'data.row_length=1000000000: must be at most 1,000,000'),
        ('data.rows', 10**9, r'1,000,000,000 rows .* tokens per batch, more than'),
        ('optimizer.b2', 2.0, 'optimizer.b2=2.0: must be 0 or more and less than 1'),
        ('optimizer.final_share', float('inf'), 'optimizer.final_share=inf: must be a number'),
        ('tokenizer.path', 3, 'tokenizer.path=3: must be a text'),
        ('data.sources.pairs.kind', {}, 'data.sources.pairs.kind={}: must be a text'),
        ('data.sources.pairs', 'pairs', 'data.sources=.*must be a section'),
    ],
)
def test_invalid_config_value_is_refused_with_its_key(
    config_file, tmp_path, tokenizer, key, value, expected
):
    config = load_config(config_file)
    tokenizer.save(tmp_path / 'own')
    # A given tokenizer, so that none is trained for each of these cases.
    config['tokenizer']['path'] = str(tmp_path / 'own') if key != 'init_from' else ''
    (tmp_path / 'empty.jsonl').write_text('')
    set_key(config, key, value)
    with contextlib.chdir(tmp_path), pytest.raises(UserError, match=expected):
        set_up(config, Path('run'))


def test_workdir_of_another_config_is_refused_with_the_key(train_here, tmp_path, finished):
    shutil.copytree(finished, tmp_path / 'run')
    with pytest.raises(UserError, match=r'optimizer\.peak_lr was 0\.003 and is 0\.5'):
        train_here(tmp_path / 'run', {'optimizer.peak_lr': 0.5})


def test_files_that_a_kill_left_incomplete_are_skipped_or_rewritten(
    train_here, tmp_path, finished, capsys
):
    """The latest checkpoint has no complete metadata and arrays, and the tokenizer is empty."""
    run = shutil.copytree(finished, tmp_path / 'run')
    (run / 'tokenizer' / 'tokenizer.model').write_bytes(b'')
    (run / 'checkpoints' / '12' / '_CHECKPOINT_METADATA').write_text('{"item_')
    for path in (run / 'checkpoints' / '12' / 'state').rglob('*'):
        if path.is_file():
            path.write_bytes(b'')
    assert train_here(run, {'evaluation.every_steps': 0}) == 0
    output = capsys.readouterr().out
    assert (
        'checkpoint 12 cannot be read: using the one before it' in output
        and 'step 8 of 12' in output
    )
    assert checkpoint.list_steps(run / 'checkpoints') == [8, 12]
    assert (run / 'tokenizer' / 'tokenizer.model').stat().st_size > 1000


def test_tokenizer_other_than_the_runs_is_refused(config_file, tmp_path, tokenizer):
    tokenizer.save(tmp_path / 'own')
    config = load_config(config_file)
    own = config | {'tokenizer': config['tokenizer'] | {'path': 'own'}}
    other = train_tokenizer(
        ['a b c d'] * 9,
        vocab_size=290,
        model_type='bpe',
        normalization='identity',
        whitespace='prefix',
        characters=99,
        seed=0,
    )
    with contextlib.chdir(tmp_path):
        run = set_up(own, Path('run'))
        # A checkpoint with all that is needed to read the run's tokenizer.
        saved = checkpoint.Checkpoints(
            tmp_path / 'run' / 'checkpoints',
            run.tokenizer.file,
            run.provenance.to_json(),
            every_steps=1,
            keep_latest=1,
            keep_every=0,
        )
        saved.save(3, {'params': {'log_scale': np.zeros(())}})
        saved.close()
        other.save(tmp_path / 'own')
        for workdir, init_from in [('run', ''), ('new', 'run')]:
            with pytest.raises(UserError, match='tokenizer.path=own is not the tokenizer'):
                set_up(own | {'init_from': init_from}, Path(workdir))


def test_run_stops_and_does_not_save_parameters_that_are_not_finite(train_here, tmp_path):
    # The learning rate is 0 in the first step and 5e29 in the second. The loss of the second step
    # is still finite, but the parameters after it are not.
    with pytest.raises(UserError, match=r'at step 2, .*the latest checkpoint is that of step 1'):
        train_here(tmp_path / 'run', {'optimizer.peak_lr': 1e30, 'checkpoint.every_steps': 1})
    assert checkpoint.list_steps(tmp_path / 'run' / 'checkpoints') == [1]
    changes = {'init_from': f'{tmp_path}/run@1', 'train.steps': 3, 'evaluation.every_steps': 0}
    assert train_here(tmp_path / 'again', changes) == 0
    assert all(np.isfinite(row['loss']) for row in read_rows(tmp_path / 'again'))


def test_processes_with_different_data_are_refused(launch, config_file, tmp_path):
    lines = config_file.with_name('pairs.jsonl').read_text().splitlines()[:280]
    (tmp_path / 'other.jsonl').write_text('\n'.join(lines))
    flags = f'--coordinator={free_address()}', '--processes=2'
    one = launch('run', *flags, '--process=0')
    two = launch(
        'run', *flags, '--process=1', f'--config.data.sources.pairs.path={tmp_path / "other.jsonl"}'
    )
    for process in (one, two):
        output = finish(process, status=1)
        assert 'the processes differ in config, sources' in output and 'Traceback' not in output
    assert not (tmp_path / 'run').exists()


def test_several_processes_need_a_coordinator(launch):
    assert '--processes=2 --process=1 need --coordinator' in read_error(
        launch('run', '--processes=2', '--process=1')
    )
