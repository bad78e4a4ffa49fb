"""launch/evaluate.py as a user runs it: killed at random, several followers, and wrong input."""

import json
import random
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from cpt_jax.evals.store.history import read_rows
from cpt_jax.runs.reference import find_checkpoint
from tests.conftest import sentences
from tests.embed.test_embedder import write_run
from tests.programs import Program, finish, start_program
from tests.storage.test_event_files import events

TASKS = ['retrieval/tiny', 'sts/STSBenchmark']


@pytest.fixture(scope='module')
def folder(tmp_path_factory, tokenizer) -> Path:
    """A folder with a finished run that has checkpoints 100 and 200, and data of two tasks.

    Retrieval has 4,500 documents, which are more than one shard.
    """
    folder = tmp_path_factory.mktemp('evaluate')
    write_run(folder / 'run', tokenizer)
    (folder / 'run' / 'config.json').write_text(json.dumps({'train': {'steps': 200}}))
    (folder / 'run' / 'data.json').write_text('{}')
    tiny = folder / 'data' / 'retrieval' / 'tiny'
    sts = folder / 'data' / 'senteval' / 'STS' / 'STSBenchmark'
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
    first = sentences(300, seed=3)
    second = sentences(300, seed=4)
    score = np.random.default_rng(0).uniform(0, 5, 300)
    rows = [f'a\tb\tc\t{i}\t{score[i]:.2f}\t{first[i]}\t{second[i]}\n' for i in range(300)]
    (sts / 'sts-test.csv').write_text(''.join(rows))
    return folder


def start(folder: Path, *flags: str, devices: int = 1) -> Program:
    given = '--model=run', '--data_dir=data', f'--tasks={",".join(TASKS)}'
    return start_program('evaluate', *given, *flags, cwd=folder, devices=devices)


def kill_when(process: Program, has_started, delay: float) -> None:
    deadline = time.time() + 200
    while not has_started():
        assert process.poll() is None and time.time() < deadline, process.communicate()[0]
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    process.communicate()


@pytest.fixture(scope='module')
def uninterrupted(folder) -> dict:
    """Results of the tasks from an evaluation that is not interrupted.

    Its rankings are in folder/uninterrupted/runs.
    """
    finish(start(folder, '--output=uninterrupted', '--trec_runs'))
    return json.loads((folder / 'uninterrupted' / 'results.json').read_text())['tasks']


def test_two_results_are_compared(folder, uninterrupted):
    program = start_program('evaluate', '--compare', 'uninterrupted', 'uninterrupted', cwd=folder)
    output = finish(program)
    assert 'A: uninterrupted (run@200)' in output
    for task, row in uninterrupted.items():
        low, high = row['intervals'][row['settings']['main_metric']]
        assert low < row['main_score'] < high
        (line,) = [line for line in output.splitlines() if line.startswith(task)]
        assert line.split()[-7:] == ['+0.00', '+0.00', 'to', '+0.00', 'no', 'difference', 'shown']


def test_comparison_needs_two_results(folder):
    program = start_program('evaluate', '--compare=uninterrupted', cwd=folder)
    assert '--compare uninterrupted: give two results' in finish(program, status=1)


def test_killed_evaluation_resumes_at_the_next_shard(folder, uninterrupted):
    process = start(folder, '--output=killed')
    kill_when(
        process,
        lambda: any(
            path.stat().st_size > 10**5 for path in (folder / 'killed').glob('vectors/*/*/*.npz')
        ),
        0,
    )
    assert not (folder / 'killed' / 'results.json').exists()
    output = finish(start(folder, '--output=killed'))
    assert '4,096 of 4,500 embeddings were read from the cache' in output
    assert sorted(path.name for path in (folder / 'killed').iterdir()) == [
        '.claims',
        'report',
        'results.json',
        'scores',
    ]
    found = json.loads((folder / 'killed' / 'results.json').read_text())['tasks']
    assert all(
        found[task]['metrics'] == uninterrupted[task]['metrics'] for task in TASKS
    )  # bitwise


def test_two_processes_equal_one_and_only_the_first_writes(folder, uninterrupted):
    """Documents are searched on the devices of both processes; the second has no data."""
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
        assert uninterrupted[task]['metrics'] == pytest.approx(two[task]['metrics'], abs=1e-4)
    found = [
        (folder / output / 'runs' / 'retrieval' / 'tiny.trec').read_text().splitlines()
        for output in ('uninterrupted', 'two')
    ]
    assert np.mean([a.split()[2] == b.split()[2] for a, b in zip(*found, strict=True)]) > 0.99


def test_processes_with_different_checkpoints_fail(folder):
    """This happens if a run saves a checkpoint between the starts of the processes."""
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


def test_killed_followers_score_every_checkpoint_once(folder, uninterrupted):
    """Two followers are killed at work; two more finish side by side, with the same scores as an
    evaluation without --follow.
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
            assert row['metrics'] == uninterrupted[row['task']]['metrics']  # bitwise
    written = events((run / 'tensorboard/eval/events.out.tfevents.0.results').read_bytes())
    assert [event.step for event in written[1:]] == [row['step'] for row in rows]
    results = json.loads((run / 'results.json').read_text())
    assert results['model'] == 'run@200' and {
        task: row['metrics'] for task, row in results['tasks'].items()
    } == {task: uninterrupted[task]['metrics'] for task in results['tasks']}
    page = (run / 'report' / 'index.html').read_text()
    assert all(f'<h3>{task}: ' in page for task in TASKS)
    best = json.loads((run / 'best.json').read_text())['sts/STSBenchmark']
    assert best['score'] == max(
        row['main_score'] for row in rows if row['task'] == 'sts/STSBenchmark'
    )
    assert find_checkpoint(f'{run}@best:sts/STSBenchmark', '--model') == (
        run / 'best',
        best['step'],
    )


def test_wrong_flags_are_one_line_errors(folder):
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
