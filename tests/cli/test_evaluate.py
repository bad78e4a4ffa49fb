"""launch/evaluate.py as a user runs it: killed at random, followed by several programs, and with
wrong input.
"""

import json
import random
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from cpt_jax.evals.store.history import read_rows
from cpt_jax.runs.checkpoint import find
from tests.conftest import sentences
from tests.embed.test_embedder import write_run
from tests.programs import Program, finish, start_program
from tests.storage.test_event_files import events

TASKS = ['retrieval/tiny', 'sts/STSBenchmark']


@pytest.fixture(scope='module')
def folder(tmp_path_factory, tokenizer) -> Path:
    """A run with the checkpoints 100 and 200, its last; and data: 4,500 documents, more than one
    shard.
    """
    folder = tmp_path_factory.mktemp('evaluate')
    write_run(folder / 'run', tokenizer)
    (folder / 'run' / 'config.json').write_text(json.dumps({'train': {'steps': 200}}))
    (folder / 'run' / 'data.json').write_text('{}')
    tiny, sts = (
        folder / 'data' / 'retrieval' / 'tiny',
        folder / 'data' / 'senteval' / 'STS' / 'STSBenchmark',
    )
    (tiny / 'qrels').mkdir(parents=True)
    sts.mkdir(parents=True)
    for name, texts in [('corpus', sentences(4500, seed=1)), ('queries', sentences(20, seed=2))]:
        (tiny / f'{name}.jsonl').write_text(
            ''.join(
                json.dumps({'_id': f'{name}{i}', 'text': text}) + '\n'
                for i, text in enumerate(texts)
            )
        )
    (tiny / 'qrels' / 'test.tsv').write_text(
        ''.join(f'queries{i}\tcorpus{i * 9 + j}\t1\n' for i in range(20) for j in range(9))
    )
    first, second, score = (
        sentences(300, seed=3),
        sentences(300, seed=4),
        np.random.default_rng(0).uniform(0, 5, 300),
    )
    rows = [f'a\tb\tc\t{i}\t{score[i]:.2f}\t{first[i]}\t{second[i]}\n' for i in range(300)]
    (sts / 'sts-test.csv').write_text(''.join(rows))
    return folder


def start(folder: Path, *flags: str, devices: int = 1) -> Program:
    given = '--model=run', '--data_dir=data', f'--tasks={",".join(TASKS)}'
    return start_program('evaluate', *given, *flags, cwd=folder, devices=devices)


def kill_when(process: Program, begun, delay: float) -> None:
    deadline = time.time() + 200
    while not begun():
        assert process.poll() is None and time.time() < deadline, process.communicate()[0]
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    process.communicate()


@pytest.fixture(scope='module')
def alone(folder) -> dict:
    """The tasks' results of one program that nothing stops; its ranked documents are in
    folder/alone/runs.
    """
    finish(start(folder, '--output=alone', '--trec_runs'))
    return json.loads((folder / 'alone' / 'results.json').read_text())['tasks']


def test_an_evaluation_that_is_killed_goes_on_at_the_shard_where_it_was(folder, alone):
    process = start(folder, '--output=killed')
    kill_when(
        process,
        lambda: any(
            path.stat().st_size > 10**5 for path in (folder / 'killed').glob('vectors/*/*/*.npy')
        ),
        0,
    )
    assert not (folder / 'killed' / 'results.json').exists()
    output = finish(start(folder, '--output=killed'))
    assert '4,096 of 4,500 texts had their vectors from an earlier start' in output
    assert sorted(path.name for path in (folder / 'killed').iterdir()) == [
        '.claims',
        'report',
        'results.json',
    ]
    found = json.loads((folder / 'killed' / 'results.json').read_text())['tasks']
    assert all(found[task]['metrics'] == alone[task]['metrics'] for task in TASKS)  # to the bit


def test_two_processes_score_what_one_does_and_the_first_writes(folder, alone):
    """Documents lie on the devices of both while they are searched; the second has no data."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        flags = f'--coordinator=localhost:{free.getsockname()[1]}', '--processes=2', '--trec_runs'
    first = start(folder, *flags, '--process=0', '--output=two', devices=2)
    second = start(
        folder, *flags, '--process=1', '--output=of_nobody', '--data_dir=of_nobody', devices=2
    )
    assert 'retrieval/tiny' in finish(first) and 'retrieval' not in finish(second)
    assert not (folder / 'of_nobody').exists()
    two = json.loads((folder / 'two' / 'results.json').read_text())['tasks']
    for task in TASKS:
        assert alone[task]['metrics'] == pytest.approx(two[task]['metrics'], abs=1e-4)
    found = [
        (folder / output / 'runs' / 'retrieval' / 'tiny.trec').read_text().splitlines()
        for output in ('alone', 'two')
    ]
    assert np.mean([a.split()[2] == b.split()[2] for a, b in zip(*found, strict=True)]) > 0.99


def test_processes_that_open_different_checkpoints_do_not_score_together(folder):
    """As where a run is still being trained, and one process looks for its latest checkpoint
    later.
    """
    with socket.socket() as free:
        free.bind(('localhost', 0))
        flags = (
            '--output=mixed',
            f'--coordinator=localhost:{free.getsockname()[1]}',
            '--processes=2',
        )
    processes = [
        start(folder, *flags, f'--process={i}', f'--model=run@{step}')
        for i, step in enumerate([100, 200])
    ]
    assert all('different models' in finish(process, status=1) for process in processes)
    assert not (folder / 'mixed' / 'results.json').exists()


def test_followers_that_are_killed_at_random_count_every_checkpoint_once(folder, alone):
    """Each while it is at work; those that finish work side by side, and score as a program without
    --follow did.
    """
    run, chance = folder / 'run', random.Random(0)
    for _ in range(2):
        process, before = start(folder, '--follow'), time.time()
        kill_when(
            process,
            lambda before=before: any(
                path.stat().st_mtime > before for path in (run / '.claims').glob('*')
            ),
            chance.uniform(0, 1.5),
        )
    outputs = [
        finish(process) for process in [start(folder, '--follow'), start(folder, '--follow')]
    ]
    assert all('training ended at step 200' in output for output in outputs)
    rows = read_rows(run / 'results.jsonl')
    assert sorted((row['step'], row['task']) for row in rows) == [
        (step, task) for step in (100, 200) for task in TASKS
    ]
    for row in rows:
        if row['step'] == 200:
            assert row['metrics'] == alone[row['task']]['metrics']  # to the bit
    written = events((run / 'tensorboard/eval/events.out.tfevents.0.results').read_bytes())
    assert [event.step for event in written[1:]] == [row['step'] for row in rows]
    results = json.loads((run / 'results.json').read_text())
    assert results['model'] == 'run@200' and {
        task: row['metrics'] for task, row in results['tasks'].items()
    } == {task: alone[task]['metrics'] for task in results['tasks']}
    page = (run / 'report' / 'index.html').read_text()
    assert all(f'<h3>{task}: ' in page for task in TASKS)
    best = json.loads((run / 'best.json').read_text())['sts/STSBenchmark']
    assert best['score'] == max(
        row['main_score'] for row in rows if row['task'] == 'sts/STSBenchmark'
    )
    assert find(f'{run}@best:sts/STSBenchmark', '--model') == (run / 'best', best['step'])


def test_a_mistake_is_one_line(folder):
    output = finish(start(folder, '--follow', '--output=x'), status=1)
    assert (
        output.startswith('error: --output x: --follow writes into the directory of the run')
        and output.count('\n') == 1
    )
    pretrained = folder / 'pretrained'
    pretrained.mkdir()
    (pretrained / 'config.json').write_text('{}')
    output = finish(start(folder, '--follow', f'--model={pretrained}'), status=1)
    assert (
        f'--model {pretrained}: a pretrained model, which has no checkpoints to follow' in output
        and output.count('\n') == 1
    )
