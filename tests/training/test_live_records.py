"""Others read the records of a run while it trains, on every kind of storage."""

import json
import time
from pathlib import Path

import pytest

from cpt_jax.runs.run_dir import RunDir
from cpt_jax.storage.paths import as_path
from tests.programs import Program, finish, make_environment

SCRIPTS = Path(__file__).parent / 'scripts'
FLAGS = (
    '--config.train.steps=3000',
    '--config.evaluation.every_steps=0',
    '--config.checkpoint.every_steps=3000',
)
STEPS = 20  # 5 seconds: the records are written three times


def count_rows(run: RunDir) -> tuple[int, int]:
    """Returns the numbers of rows in metrics.jsonl and of those in TensorBoard's files."""
    if not run.metrics.exists() or not run.tensorboard.exists():
        return 0, 0
    events = sum(path.read_bytes().count(b'param_norm') for path in run.tensorboard.iterdir())
    return run.metrics.read_bytes().count(b'\n'), events


@pytest.mark.parametrize('storage', ['mount', 'bucket'])
def test_reader_sees_each_row_soon_and_keeps_it_after_a_kill(
    config_file, tmp_path, request, storage
):
    workdir = tmp_path / 'run'
    if storage == 'bucket':
        workdir = as_path(request.getfixturevalue('gs_bucket')) / 'run'
    environment = make_environment(devices=1)
    given = '--config', str(config_file), '--workdir', str(workdir), *FLAGS
    training = Program(SCRIPTS / 'train_watched.py', given, tmp_path, environment)
    stop = tmp_path / 'stop'
    reading = str(workdir), str(stop)
    reader = Program(SCRIPTS / 'read_records.py', reading, tmp_path, environment)
    run = RunDir(workdir)
    deadline = time.monotonic() + 100
    while min(count_rows(run)) < STEPS:
        assert training.poll() is None, training.communicate()[0]
        assert reader.poll() is None, reader.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    training.kill()
    training.wait()
    stop.touch()
    seen = json.loads(finish(reader).splitlines()[-1])
    rows, events = seen['rows'], seen['events']
    for steps in (rows, events):
        assert len(steps) >= STEPS and [*steps] == [str(i + 1) for i in range(len(steps))]
    # An event has the time of its row, which is recorded while the next step runs.
    for step, (seen_at, written_at) in events.items():
        assert seen_at - written_at < 10
        assert step not in rows or rows[step] - written_at < 10
    # The reader has asserted that each content begins with the one before, after the kill too.
    files = [run.metrics, *run.tensorboard.iterdir()]
    assert sum(len(path.read_bytes()) for path in files) == seen['bytes']
