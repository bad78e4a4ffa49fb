"""The command line of a small training, for the faults that need a run."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
STEPS = 40
TRAIN_FLAGS = (
    '--config=configs/quickstart.py',
    f'--config.train.steps={STEPS}',
    '--config.train.log_every=1',
    '--config.train.batch_pairs=64',
    '--config.optimizer.warmup_steps=2',
    '--config.checkpoint.every_steps=4',
    '--config.evaluation.every_steps=10',
    '--config.evaluation.pairs=200',
    '--config.model.layers=2',
    '--config.model.width=64',
    '--config.model.heads=2',
)


def start_program(name: str, *flags: object, cwd: Path) -> subprocess.Popen:
    """Starts launch/`name`.py; its output goes to `cwd`/output.txt."""
    command = [sys.executable, str(ROOT / 'launch' / f'{name}.py'), *map(str, flags)]
    with open(cwd / 'output.txt', 'ab') as output:
        return subprocess.Popen(command, cwd=cwd, stdout=output, stderr=subprocess.STDOUT)


def finish(program: subprocess.Popen, cwd: Path) -> None:
    """Waits for the end of a program. Raises RuntimeError, with its output, if it fails."""
    if program.wait():
        raise RuntimeError(f'{program.args}:\n{(cwd / "output.txt").read_text()[-2000:]}')


def train(workdir: Path, *flags: str) -> None:
    """Trains a run to its end."""
    finish(
        start_program('train', *TRAIN_FLAGS, f'--workdir={workdir}', *flags, cwd=workdir.parent),
        workdir.parent,
    )
