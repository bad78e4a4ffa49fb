r"""Runs experiments: trains and evaluates each of their runs, one at a time.

An experiment is a file in benchmarks/experiments. Its results are rows of a file next to it, with
the flags, the seed, the scores, the processor seconds, the machine, the commit and the commands. A
run that has a row is skipped, and a run that was killed continues: start the same command again.
Runs with the same training are trained once, also in several experiments.

Example:
  python benchmarks/sweep.py --experiments=batch_size,delimiters --folders=data=/my/data
  python benchmarks/sweep.py --experiments=batch_size --dry_run
  python benchmarks/sweep_report.py

The second command prints the commands and an estimate of the time, and runs nothing. The third
makes the tables and plots of docs/experiments.md and a page.
"""

import json
import os
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from absl import flags

from commands import CommandFailed, Commands, Run, run_command
from cpt_jax.cli.program import run_program
from cpt_jax.runs.code_version import get_code_version
from cpt_jax.runtime.errors import EXIT_PREEMPTED, UserError
from cpt_jax.storage.json_rows import append_row, read_complete_rows
from experiment import (
    FOLDER,
    RUNS,
    Experiment,
    PlannedRun,
    Row,
    fill_folders,
    find_rows_path,
    load_experiment,
    read_rows,
)


def main() -> int:
    given = dict(_split_folder(text) for text in _FOLDERS.value)
    paths = [_find_file(name) for name in _EXPERIMENTS.value]
    if not paths:
        raise UserError(f'--experiments: choose some of {", ".join(_list_names())}')
    output = Path(_OUTPUT.value).absolute()
    sweeps = [Sweep(path, load_experiment(path), given, output) for path in paths]
    for sweep in sweeps:
        print(sweep.describe(), flush=True)
        if _DRY_RUN.value:
            sweep.print_commands()
    failed = 0
    for sweep, run in _list_runs([] if _DRY_RUN.value else sweeps):
        if _MINUTES.value and sum(one.spent for one in sweeps) >= 60 * _MINUTES.value:
            print(f'--minutes={_MINUTES.value:g} are spent; start again to continue', flush=True)
            return EXIT_PREEMPTED
        try:
            sweep.execute(run)
        except CommandFailed as failure:
            print(failure, flush=True)
            if failure.status == EXIT_PREEMPTED:
                return EXIT_PREEMPTED
            failed += 1
    if not _DRY_RUN.value:
        spent = sum(one.spent for one in sweeps)
        print(f'{spent / 60:.1f} processor minutes; {failed} runs failed')
    return 1 if failed else 0


def _list_runs(sweeps: Sequence['Sweep']) -> Iterator[tuple['Sweep', PlannedRun]]:
    for sweep in sweeps:
        for run in sweep.list_missing_runs():
            yield sweep, run


class Sweep:
    """The runs of one experiment.

    Attributes:
      path: file of the experiment.
      experiment: the experiment.
      folders: name in the flags -> folder on this machine.
      output: folder of the runs.
      code: version of the code.
      spent: processor seconds of the commands that it has run.
    """

    def __init__(
        self,
        path: Path,
        experiment: Experiment,
        folders: Mapping[str, str],
        output: Path,
        run_command: Run = run_command,
    ):
        self.path = path
        self.experiment = experiment
        chosen = {name: folders.get(name, default) for name, default in experiment.folders.items()}
        self.folders = {name: os.path.abspath(folder) for name, folder in chosen.items()}
        self.output = output
        self.code = get_code_version()  # now: new rows change a file of the repository
        self.spent = 0.0
        self._run_command = run_command

    def list_missing_runs(self) -> list[PlannedRun]:
        """Returns the runs of which a step has no row."""
        return [run for run in self.experiment.list_runs() if self._list_missing_steps(run)]

    def describe(self) -> str:
        """Returns a line: runs, and the processor time spent and left."""
        missing = len(self.list_missing_runs())
        total = len(self.experiment.list_runs())
        seconds = self._sum_seconds_of_runs()
        each = statistics.mean(seconds) if seconds else 60 * self.experiment.minutes
        return (
            f'{self.path.stem}: {total - missing} of {total} runs have results, from '
            f'{sum(seconds) / 60:.1f} processor minutes; the others take about '
            f'{missing * each / 60:.0f}'
        )

    def print_commands(self) -> None:
        """Prints the commands of all runs that have no results."""
        for run in self.list_missing_runs():
            for step in run.steps:
                print('\n'.join(run.list_commands(step, self.experiment.folders)))

    def execute(self, run: PlannedRun) -> None:
        """Trains and evaluates a run, and adds its rows.

        Raises:
          CommandFailed: a command failed or was stopped.
        """
        folder = self.output / run.name
        start = self.spent
        if run.train:
            self._finish(folder, 'train', run.make_train_command(str(self.output)))
        for step in self._list_missing_steps(run):
            name = run.name_evaluation(step)
            self._finish(folder, name, run.make_evaluate_command(step, str(self.output)))
            append_row(find_rows_path(self.path), self._make_row(run, step, folder))
        print(
            f'{_format_run(run)}: {self.spent - start:.0f} processor s; {self.describe()}',
            flush=True,
        )

    def _finish(self, folder: Path, name: str, arguments: Sequence[str]) -> None:
        """Runs a command of a run, unless it has finished earlier.

        Raises:
          CommandFailed: the program failed or was stopped.
        """
        commands = Commands(folder, self._run_command)
        self.spent += commands.finish(name, fill_folders(arguments, self.folders))

    def _list_missing_steps(self, run: PlannedRun) -> list[int | str]:
        """Returns the steps of a run that have no row."""
        done = [step for found, step, _ in read_rows(self.path, self.experiment) if found == run]
        return [step for step in run.steps if step not in done]

    def _sum_seconds_of_runs(self) -> list[float]:
        """Returns the processor seconds of each run with rows; its training counts once."""
        seconds: dict[tuple, float] = {}
        for run, _, row in read_rows(self.path, self.experiment):
            spent = row['processor_seconds']
            key = run.train, run.evaluate
            seconds[key] = seconds.get(key, spent.get('train', 0.0)) + spent['evaluate']
        return list(seconds.values())

    def _make_row(self, run: PlannedRun, step: int | str, folder: Path) -> Row:
        """Returns the row of an evaluated step."""
        results = json.loads((folder / run.name_evaluation(step) / 'results.json').read_text())
        seconds = {'evaluate': Commands(folder).sum_seconds(run.name_evaluation(step))}
        if run.train:
            seconds = {'train': Commands(folder).sum_seconds('train'), **seconds}
        return {
            'levels': run.levels,
            'seed': run.seed,
            'step': results['settings'].get('step'),
            **_read_training(folder / 'run' / 'metrics.jsonl', results['settings'].get('step')),
            'scores': {task: shorten_result(row) for task, row in results['tasks'].items()},
            'processor_seconds': seconds,
            'machine': describe_machine(),
            'code': self.code,
            'time': datetime.now(UTC).isoformat(timespec='seconds'),
            'commands': run.list_commands(step, self.experiment.folders),
        }


def describe_machine() -> str:
    """Returns the processor's name and the number of cores that this process may use."""
    path = Path('/proc/cpuinfo')
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    name = names[0] if names else platform.machine()
    cores = len(os.sched_getaffinity(0))
    unit = 'core' if cores == 1 else 'cores'
    return f'{name}, {cores} {unit}'


def _read_training(path: Path, step: int | None) -> Row:
    """Returns the pairs seen and the last held-out MRR at a step of a run; {} without training."""
    found: Row = {}
    for _, row in read_complete_rows(path):
        if step is not None and row['step'] <= step:  # type: ignore[index]
            names = ('pairs_seen', 'heldout_mrr', 'heldout_pairs')
            found |= {name: row[name] for name in names if name in row}  # type: ignore[index,operator]
    return found


def shorten_result(row: Mapping[str, Any]) -> Row:
    """Returns the main score of a task, its interval and baselines.

    Args:
      row: the entry of the task in results.json.
    """
    metric = row['settings']['main_metric']
    short = {'metric': metric, 'score': row['main_score'], 'n': row['n']}
    if interval := row.get('intervals', {}).get(metric):
        short['interval'] = interval
    if split := row['settings'].get('split'):
        short['split'] = split
    return short | {'baselines': {name: found[metric] for name, found in row['baselines'].items()}}


def _format_run(run: PlannedRun) -> str:
    levels = [f'{factor} {level}' for factor, level in run.levels.items()]
    return ', '.join([*levels, *([] if run.seed is None else [f'seed {run.seed}'])])


def _split_folder(text: str) -> tuple[str, str]:
    name, separator, folder = text.partition('=')
    if not separator:
        raise UserError(f'--folders {text}: must be NAME=DIR')
    return name, folder


def _find_file(name: str) -> Path:
    return Path(name) if name.endswith('.py') else FOLDER / f'{name}.py'


def _list_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob('*.py'))


if __name__ == '__main__':
    # Flags are defined here because tests import several of these modules.
    _EXPERIMENTS = flags.DEFINE_list(
        'experiments', [], 'Names of files in benchmarks/experiments, or paths of such files.'
    )
    _FOLDERS = flags.DEFINE_list(
        'folders', [], 'NAME=DIR of each {NAME} in the flags, as data=DIR.'
    )
    _OUTPUT = flags.DEFINE_string('output', RUNS, 'Folder of the runs.')
    _MINUTES = flags.DEFINE_float(
        'minutes', 0, 'Processor minutes after which no run is started; 0: no limit.', lower_bound=0
    )
    _DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the commands and an estimate only.')
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    run_program(main)
