"""Tests of benchmarks/sweep.py: two tiny runs, one of them killed, and the tables of their rows."""

import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import commands
import experiment_tables
from commands import CommandFailed
from cpt_jax.runtime.errors import UserError
from experiment import find_rows_path, load_experiment, read_rows
from sweep import Sweep
from sweep_report import DOCUMENT, collect_all, fill_document, render_page
from tests.programs import Program, make_environment
from tests.training.conftest import write_config

ROOT = Path(__file__).parents[1]
EXPERIMENT = """
from experiment import Experiment
EXPERIMENT = Experiment(
    title='Tiny',
    train='--config={{configs}}/tiny.py --config.train.steps=60 --config.evaluation.every_steps=0 '
    '--config.checkpoint.every_steps=20 --config.checkpoint.keep_every=20',
    evaluate='--tasks=sts/STSBenchmark --data_dir={{data}}',
    factors={{'rate': {{'0.003': '--config.optimizer.peak_lr=0.003', {more}}}}},
    seeds=(0,), steps={steps}, folders={{'data': 'data', 'configs': 'configs'}}, x_axis='step')
"""
MORE = "'0.001': '--config.optimizer.peak_lr=0.001'"


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Returns a folder with a config, its pairs, and twelve pairs of STS-B."""
    folder = tmp_path_factory.mktemp('sweep')
    write_config(folder)
    data = folder / 'data' / 'senteval' / 'STS' / 'STSBenchmark'
    data.mkdir(parents=True)
    rows = [f'a\tb\tc\t{i}\t{i % 5}.0\tlist file\tlist {"parser " * i}value' for i in range(12)]
    (data / 'sts-test.csv').write_text('\n'.join(rows) + '\n')
    (folder / 'one.py').write_text(EXPERIMENT.format(more='', steps='(20,)'))
    (folder / 'two.py').write_text(EXPERIMENT.format(more=MORE, steps='(20,)'))
    return folder


class Runner:
    """Runs commands in processes that have imported JAX, and stops the first one early.

    Attributes:
      commands: the arguments of all commands.
    """

    def __init__(self, stop_first: bool):
        self.commands: list[tuple[str, ...]] = []
        self.stop_first = stop_first

    def __call__(self, arguments: Sequence[str], log: Path) -> tuple[int, float]:
        self.commands.append(tuple(arguments))
        program = Program(ROOT / arguments[0], arguments[1:], ROOT, make_environment(1))
        if self.stop_first and len(self.commands) == 1:
            metrics = Path(arguments[-1].partition('=')[2]) / 'metrics.jsonl'
            while not (metrics.exists() and '"step": 1,' in metrics.read_text()):
                time.sleep(0.02)
            program.send_signal(signal.SIGTERM)
        output, _ = program.communicate(timeout=200)
        log.write_text(output)
        return program.returncode, 1.5


def make_sweep(folder: Path, name: str, runner: Runner) -> Sweep:
    path = folder / f'{name}.py'
    folders = {'data': str(folder / 'data'), 'configs': str(folder)}
    return Sweep(path, load_experiment(path), folders, folder / 'runs', runner)


def test_a_stopped_run_continues_and_a_finished_one_is_not_repeated(folder):
    runner = Runner(stop_first=True)
    one = make_sweep(folder, 'one', runner)
    (run,) = one.list_missing_runs()
    with pytest.raises(CommandFailed, match='status 42: SIGTERM: saved step'):
        one.execute(run)
    one.execute(run)
    train, resumed, evaluation = runner.commands
    assert train == resumed and evaluation[0] == 'launch/evaluate.py'
    log = (folder / 'runs' / run.name / 'run' / 'train.log').read_text()
    assert 'done: step 60' in log and 'step 0 of 60' in log
    assert one.list_missing_runs() == []

    (line,) = (folder / 'one.jsonl').read_text().splitlines()
    row = json.loads(line)
    assert (row['step'], row['pairs_seen']) == (20, 20 * 32)  # not those of the last step
    assert row['processor_seconds'] == {'train': 3.0, 'evaluate': 1.5}
    assert row['levels'] == {'rate': '0.003'} and row['seed'] == 0
    # Recorded commands have no path of this machine.
    assert '--config=configs/tiny.py' in row['commands'][0]
    assert '--data_dir=data ' in row['commands'][1]
    cell = row['scores']['sts/STSBenchmark']
    assert cell['metric'] == 'spearman' and cell['n'] == 12
    assert cell['interval'][0] <= cell['score'] <= cell['interval'][1]

    # Another experiment with the same training, and one level more.
    two = make_sweep(folder, 'two', runner)
    same, other = two.list_missing_runs()
    two.execute(same)
    assert len(runner.commands) == 3 and two.spent == 0
    assert two.list_missing_runs() == [other]
    assert 'two: 1 of 2 runs have results' in two.describe()


@pytest.fixture
def written(tmp_path) -> Path:
    """Returns the file of an experiment with two levels, of which the first one has rows."""
    path = tmp_path / 'two.py'
    path.write_text(EXPERIMENT.format(more=MORE, steps='(20, 60)'))
    experiment = load_experiment(path)
    run = experiment.list_runs()[0]
    with find_rows_path(path).open('w') as file:
        for step in run.steps:
            row = {
                'levels': run.levels,
                'seed': 0,
                'step': step,
                'pairs_seen': 32 * step,
                'scores': {
                    'sts/STSBenchmark': {
                        'metric': 'spearman',
                        'score': step / 100,
                        'interval': [0.3, 0.7],
                        'n': 12,
                        'baselines': {'bm25': 0.5, 'random': 0.1} if step == 60 else {},
                    }
                },
                'processor_seconds': {'train': 60.0, 'evaluate': 6.0},
                'machine': 'test, 2 cores',
                'code': '0.1.0',
                'commands': run.list_commands(step, experiment.folders),
            }
            file.write(json.dumps(row) + '\n')
    return path


def test_the_training_of_several_steps_counts_once(written, tmp_path):
    found = Sweep(written, load_experiment(written), {}, tmp_path, Runner(stop_first=False))
    expected = 'two: 1 of 2 runs have results, from 1.2 processor minutes; the others take about 1'
    assert found.describe() == expected


def test_rows_of_runs_that_no_longer_exist_are_ignored(written):
    assert len(list(read_rows(written, load_experiment(written)))) == 2
    written.write_text(written.read_text().replace('0.003', '0.004'))
    assert list(read_rows(written, load_experiment(written))) == []


def test_tables_have_the_rows(written):
    findings = experiment_tables.collect(written)
    assert findings.missing == 1
    interval = '(30.00 to 70.00)'
    assert findings.cells == [
        ['0.003', '20', '640', f'20.00 {interval}', '1', '66'],
        ['0.003', '60', '1,920', f'60.00 {interval}', '1', '66'],
        ['BM25', '', '', '50.00', '', ''],
    ]
    page = experiment_tables.fill_page(
        'A\n<!-- experiment two -->\nformer\n<!-- end -->\nB',
        {'two': experiment_tables.format_markdown(findings, 'two.svg')},
    )
    assert page.startswith('A\n') and page.endswith('B') and 'former' not in page
    assert f'| 0.003 | 60 | 1,920 | 60.00 {interval} | 1 | 66 |' in page
    assert '--experiments=two' in page and '(two.svg)' in page
    html = render_page([findings])
    assert '<td>1,920</td>' in html and html.count('data:image/svg+xml') == 1


def test_scores_of_two_metrics_of_a_task_are_in_two_columns(written):
    findings = experiment_tables.collect(written)
    score = findings.scores[0]
    row = findings.rows[0]
    assert experiment_tables.find_cell(row, score)['score'] == row['scores'][score.task]['score']
    assert experiment_tables.find_cell(row, score._replace(metric='other')) is None


def test_rows_with_different_scores_of_bm25_are_an_error(written):
    path = written.with_suffix('.jsonl')
    path.write_text(path.read_text().replace('"baselines": {}', '"baselines": {"bm25": 0.4}'))
    findings = experiment_tables.collect(written)
    with pytest.raises(UserError, match=r'two: .* of BM25 on .*: 0\.4, 0\.5;'):
        _ = findings.cells


def test_interval_over_seeds_is_that_of_student():
    found = experiment_tables.make_estimate([0.5, 0.6, 0.7])
    # t of 97.5 % with two degrees of freedom is 4.3027, the standard error 0.1 / sqrt(3).
    assert found.mean == pytest.approx(0.6)
    assert found.bounds == pytest.approx((0.6 - 0.24842, 0.6 + 0.24842), abs=1e-4)
    assert experiment_tables.format_estimate(found, 'mrr') == '60.00 (35.16 to 84.84)'


def test_a_command_gets_sigterm_and_its_processor_time_is_measured(tmp_path):
    program = tmp_path / 'program.py'
    program.write_text('import os, signal\nsum(range(3_000_000))\nos.kill(os.getppid(), 15)\n'
                       'signal.pause()\n')  # fmt: skip
    status, seconds = commands.run_command([str(program)], tmp_path / 'log')
    assert status == -signal.SIGTERM and seconds > 0.01


def test_the_document_has_the_tables_of_the_committed_rows():
    assert fill_document(DOCUMENT.read_text(), collect_all()) == DOCUMENT.read_text(), (
        'run python benchmarks/sweep_report.py'
    )


def test_every_experiment_has_distinct_runs():
    for path in sorted((ROOT / 'benchmarks' / 'experiments').glob('*.py')):
        runs = load_experiment(path).list_runs()
        keys = [(run.train, run.evaluate) for run in runs]
        assert len({*keys}) == len(keys), path
