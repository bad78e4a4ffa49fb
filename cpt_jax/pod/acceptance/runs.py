"""Runs launch/train.py on the accelerator and on the CPU, and compares their rows."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cpt_jax.pod.acceptance.check import FAILED, PASSED, SKIPPED, Check, compare
from cpt_jax.runtime.errors import EXIT_PREEMPTED, UserError

ROOT = Path(__file__).parents[3]
# A model of two layers that the CPU trains in a minute. Rows of 128 columns suit the kernels.
SMALL = (
    '--config=configs/quickstart.py',
    '--config.model.layers=2',
    '--config.data.row_length=128',
    '--config.data.row_choices=1',
    '--config.train.batch_pairs=64',
    '--config.train.log_every=1',
    '--config.optimizer.warmup_steps=5',
    '--config.evaluation.every_steps=0',
    '--config.evaluation.pairs=0',
)
# Relative difference of the losses of one step. On the accelerator, activations are bfloat16.
_LOSS_BOUND = 0.03
_FIRST_TIMED_STEP = 5

Rows = list[dict[str, float]]


def replace_flags(flags: Sequence[str], by: Sequence[str]) -> list[str]:
    """Returns flags, each --NAME=VALUE, of which those in `by` replace others of the same name.

    --config comes first, as its overrides require.
    """
    replaced = {flag.partition('=')[0] for flag in by}
    kept = [flag for flag in flags if flag.partition('=')[0] not in replaced]
    return sorted([*kept, *by], key=lambda flag: not flag.startswith('--config='))


def run_to_end(
    name: str, flags: Sequence[str], environment: Mapping[str, str] | None = None
) -> None:
    """Runs a program of launch/ to its end, with its output.

    Raises:
      UserError: it failed.
    """
    process = _start(name, flags, environment)
    if process.wait():
        raise UserError(f'launch/{name} ended with status {process.returncode}: see its output')


def train_run(
    workdir: str, flags: Sequence[str], environment: Mapping[str, str] | None = None
) -> Rows:
    """Trains a run to its end; returns its rows."""
    run_to_end('train.py', [f'--workdir={workdir}', *flags], environment)
    return read_loss_rows(workdir)


def check_losses(rows: Rows, reference: Rows) -> Check:
    """Returns the check that the losses of the accelerator are those of the CPU."""
    pairs = zip(rows, reference, strict=True)
    error = max(abs(row['loss'] - other['loss']) / other['loss'] for row, other in pairs)
    name = f'losses of {len(rows)} steps: largest relative difference to the CPU'
    return compare(name, error, _LOSS_BOUND)


def check_preemption(workdir: str, flags: Sequence[str], expected: Rows) -> list[Check]:
    """Stops a run by SIGTERM, resumes it, and compares it with one that was not stopped."""
    process = _start('train.py', [f'--workdir={workdir}', *flags], None)
    while process.poll() is None and len(read_loss_rows(workdir)) < len(expected) // 3:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    status = process.wait()
    stopped = read_loss_rows(workdir)
    saved = Check(
        'SIGTERM: exit status, and steps that were saved',
        PASSED if status == EXIT_PREEMPTED and len(stopped) < len(expected) else FAILED,
        f'{status}, {len(stopped)} of {len(expected)}',
        f'{EXIT_PREEMPTED}, before the last step',
    )
    rows = train_run(workdir, flags)
    pairs = zip(rows, expected, strict=True)
    different = sum(row['loss'] != other['loss'] for row, other in pairs)
    resumed = Check(
        'steps whose loss differs after the run was resumed',
        FAILED if different else PASSED,
        f'{different} of {len(expected)}',
        '0',
    )
    return [saved, resumed]


def describe_speed(rows: Rows, plan: Mapping[str, float] | None) -> list[Check]:
    """Returns the speed of a run, compared with its plan if there is one.

    Args:
      rows: its rows, one for each step.
      plan: the JSON of launch/plan.py for the same config.
    """
    timed = [row for row in rows if row['step'] > _FIRST_TIMED_STEP]
    steps = sorted(row['step_seconds_max'] for row in timed)
    median = steps[len(steps) // 2]
    tokens = sorted(row['tokens_per_second'] for row in timed)[len(timed) // 2]
    speed = f'{median:.4g} s a step, {tokens:,.0f} tokens/s'
    if 'mfu' in timed[-1]:
        speed += f', MFU {100 * sorted(row["mfu"] for row in timed)[len(timed) // 2]:.1f} %'
    checks = [Check('speed (medians)', PASSED, speed, 'measured, not judged')]
    if plan is None:
        reason = 'no --topology, or no TPU: there is no plan to compare with'
        return [*checks, Check('step time against the plan', SKIPPED, '', reason)]
    bound, forecast = plan['lower_bound_seconds'], plan['forecast_seconds']
    checks.append(
        Check(
            'step time against the plan',
            PASSED if median >= bound else FAILED,
            f'{median / forecast:.2f} x the forecast of {forecast:.4g} s',
            f'at least the lower bound of {bound:.4g} s',
        )
    )
    return checks


def read_loss_rows(workdir: str) -> Rows:
    """Returns the rows of a run that have a loss; [] before the first one."""
    path = Path(workdir, 'metrics.jsonl')
    if not path.exists():
        return []
    lines = path.read_text().split('\n')[:-1]
    return [row for row in map(json.loads, lines) if 'loss' in row]


def _start(
    name: str, flags: Sequence[str], environment: Mapping[str, str] | None
) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / 'launch' / name), *flags]
    print(f'\n$ {" ".join(["launch/" + name, *flags])}', flush=True)
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **(environment or {})})
