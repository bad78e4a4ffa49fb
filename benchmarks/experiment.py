"""An experiment: flags of the programs in launch/ that are varied, and the runs that follow.

An experiment is a Python file with one `Experiment` named EXPERIMENT, in benchmarks/experiments.
benchmarks/sweep.py runs it, benchmarks/sweep_report.py makes its table and its plot.
"""

import hashlib
import itertools
import json
import runpy
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_rows import read_complete_rows

FOLDER = Path(__file__).parent / 'experiments'
# Folder of the runs in the commands that are recorded. A recorded command names every folder by its
# default, so that it does not depend on the machine.
RUNS = 'runs/experiments'
LAST = 'last'  # the step of an evaluation after the last one

Row = dict[str, Any]


class Flags(NamedTuple):
    """Flags of a level of a factor, as in a command line.

    Attributes:
      train: flags of launch/train.py.
      evaluate: flags of launch/evaluate.py.
    """

    train: str = ''
    evaluate: str = ''


@dataclass(frozen=True)
class Experiment:
    """Runs that differ in some flags. The runs are all combinations of levels and seeds.

    In flags, {NAME} is a folder of data or models; `folders` has the names and the defaults.

    Attributes:
      title: title of the table and the plot.
      evaluate: flags of launch/evaluate.py in all runs, without --model and --output.
      factors: factor -> level -> flags. Text means flags of launch/train.py if `train` is given,
        else of launch/evaluate.py.
      train: flags of launch/train.py in all runs, without --workdir; '' leaves them to the levels.
        A run without any trains nothing, and its levels set --model of launch/evaluate.py.
      seeds: seeds of training; () makes one run, with the seed of the config.
      steps: steps whose checkpoints are evaluated; () evaluates the last one. The flags must keep
        these checkpoints.
      minutes: estimate of the processor minutes of one run.
      folders: name in the flags -> default folder.
      x_axis: factor on the horizontal axis of the plot, or 'step'; '' draws a bar for each level.
    """

    title: str
    evaluate: str
    factors: Mapping[str, Mapping[str, str | Flags]]
    train: str = ''
    seeds: Sequence[int] = (0, 1, 2)
    steps: Sequence[int] = ()
    minutes: float = 1.0
    folders: Mapping[str, str] = field(default_factory=lambda: {'data': 'data'})
    x_axis: str = ''

    @property
    def trains(self) -> bool:
        """Whether any run trains a model."""
        return any(run.train for run in self.list_runs())

    def list_runs(self) -> 'list[PlannedRun]':
        """Returns all runs, in the order in which they are started: seed by seed.

        A run that trains nothing has no seed, and is there once.
        """
        levels = [
            dict(zip(self.factors, chosen, strict=True))
            for chosen in itertools.product(*self.factors.values())
        ]
        runs: list[PlannedRun] = []
        for seed in self.seeds or (None,):
            planned = [self._plan_run(chosen, seed) for chosen in levels]
            runs += [run for run in planned if run not in runs]
        return runs

    def _plan_run(self, levels: dict[str, str], seed: int | None) -> 'PlannedRun':
        chosen = [self.factors[factor][level] for factor, level in levels.items()]
        given = [self._as_flags(flags) for flags in chosen]
        train = shlex.split(' '.join([self.train, *(flags.train for flags in given)]))
        seed = seed if train else None
        train += [] if seed is None else [f'--config.seed={seed}']
        evaluate = shlex.split(' '.join([self.evaluate, *(flags.evaluate for flags in given)]))
        return PlannedRun(levels, seed, tuple(train), tuple(evaluate), tuple(self.steps or (LAST,)))

    def _as_flags(self, flags: str | Flags) -> Flags:
        if isinstance(flags, Flags):
            return flags
        return Flags(train=flags) if self.train else Flags(evaluate=flags)


class PlannedRun(NamedTuple):
    """One run of an experiment: at most one training, and the evaluation of each step.

    Attributes:
      levels: factor -> level.
      seed: seed of training; None if the flags do not set it.
      train: flags of launch/train.py; () trains nothing.
      evaluate: flags of launch/evaluate.py.
      steps: steps to evaluate.
    """

    levels: dict[str, str]
    seed: int | None
    train: tuple[str, ...]
    evaluate: tuple[str, ...]
    steps: tuple[int | str, ...]

    @property
    def name(self) -> str:
        """Name of the run's folder. Runs of several experiments with the same training share it."""
        if not self.train:
            return f'untrained-{_digest(self.evaluate)}'
        config = self.train[0].partition('=')[2]
        return f'{Path(config.partition(":")[0]).stem}-{_digest(self.train)}'

    def make_train_command(self, runs: str = RUNS) -> list[str]:
        """Returns the arguments of Python that train."""
        return ['launch/train.py', *self.train, f'--workdir={runs}/{self.name}/run']

    def make_evaluate_command(self, step: int | str, runs: str = RUNS) -> list[str]:
        """Returns the arguments of Python that evaluate a step."""
        output = f'--output={runs}/{self.name}/{self.name_evaluation(step)}'
        if not self.train:
            return ['launch/evaluate.py', *self.evaluate, output]
        at = '' if step == LAST else f'@{step}'
        model = f'--model={runs}/{self.name}/run{at}'
        return ['launch/evaluate.py', model, *self.evaluate, output]

    def name_evaluation(self, step: int | str) -> str:
        """Returns the name of the folder of an evaluation, inside that of the run."""
        return f'{step}-{_digest(self.evaluate)}'

    def list_commands(self, step: int | str, folders: Mapping[str, str]) -> list[str]:
        """Returns the commands of a step as they are recorded: with default folders."""
        commands = [self.make_train_command()] if self.train else []
        commands.append(self.make_evaluate_command(step))
        return [f'python {shlex.join(fill_folders(command, folders))}' for command in commands]


def fill_folders(arguments: Sequence[str], folders: Mapping[str, str]) -> list[str]:
    """Returns arguments with the folders in place of their names in braces."""
    filled = list(arguments)
    for name, folder in folders.items():
        filled = [argument.replace(f'{{{name}}}', folder) for argument in filled]
    return filled


def load_experiment(path: Path) -> Experiment:
    """Returns the experiment in a file.

    Raises:
      UserError: there is no such file, or it has no experiment.
    """
    if not path.is_file():
        raise UserError(f'{path}: no such file; the experiments are in {FOLDER}')
    found = runpy.run_path(str(path)).get('EXPERIMENT')
    if not isinstance(found, Experiment):
        raise UserError(f'{path}: has no Experiment with the name EXPERIMENT')
    return found


def find_rows_path(path: Path) -> Path:
    """Returns the file of the rows of an experiment, next to its own."""
    return path.with_suffix('.jsonl')


def read_rows(path: Path, experiment: Experiment) -> Iterator[tuple[PlannedRun, int | str, Row]]:
    """Yields (run, step, row) for the runs of an experiment that have results, in their order.

    Rows of runs that the experiment no longer has are left out.
    """
    stored = {}
    for _, row in read_complete_rows(find_rows_path(path)):
        stored[make_key(row['commands'])] = row  # type: ignore[index]
    for run in experiment.list_runs():
        for step in run.steps:
            row = stored.get(make_key(run.list_commands(step, experiment.folders)))
            if row is not None:
                yield run, step, row


def make_key(commands: Sequence[str]) -> tuple[str, ...]:
    """Returns the key of a row: its commands."""
    return tuple(commands)


def _digest(values: Sequence[str]) -> str:
    return hashlib.blake2b(json.dumps(values).encode(), digest_size=4).hexdigest()
