"""A preparation from its config to its data set."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cpt_jax.data.prepared import SUMMARY_FILE
from cpt_jax.prepare.packages import require_package
from cpt_jax.prepare.plan import PLAN_FILE, Preparation, plan_preparation, read_preparation
from cpt_jax.prepare.stages import get_stages
from cpt_jax.prepare.work_folder import FOLDER
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_files import read_json_file
from cpt_jax.storage.locks import try_lock

LOCK = '.preparing'  # held by the program that prepares a directory


def prepare(
    config: Mapping[str, Any],
    output: Path,
    workers: int = 0,
    executor: str = 'local',
    slurm: tuple[str, str] = ('', ''),
) -> dict[str, Any] | None:
    """Makes pairs of the sources of a config; goes on with a preparation that was killed.

    Args:
      config: the config.
      output: directory for the data set.
      workers: number of processes, or of tasks at a time on a cluster; 0: one per core, or no limit
        on a cluster.
      executor: 'local', 'slurm' or 'ray'.
      slurm: partition and time limit of a task, for executor slurm.

    Returns:
      The content of summary.json; None if jobs were submitted that have not ended.

    Raises:
      UserError: the extra `prepare` is not installed, the config or a file cannot be used, or the
        directory has something else.
    """
    require_package('datatrove', 'launch/prepare.py')
    plan = plan_preparation(config)
    work = output / FOLDER
    if not _is_finished(plan, output):
        output.mkdir(parents=True, exist_ok=True)
        with try_lock(output / LOCK) as mine:
            if not mine:
                raise UserError(f'{output}: another program is preparing it: wait for its end')
            _start(plan, output, work)
            _run(plan, output, workers, executor, slurm)
        if not _is_finished(plan, output):
            return None
    shutil.rmtree(work, ignore_errors=True)
    return read_json_file(output / SUMMARY_FILE)


def _is_finished(plan: Preparation, output: Path) -> bool:
    """Returns whether a directory has the result of a preparation."""
    summary = read_json_file(output / SUMMARY_FILE, optional=True)
    if summary and summary.get('preparation') != plan.fingerprint:
        raise UserError(
            f'{output}: was prepared with another config or from other files: choose another '
            f'--output, or remove it'
        )
    return bool(summary)


def _start(plan: Preparation, output: Path, work: Path) -> None:
    """Stores the plan, or checks that it is the one that was begun."""
    if (work / PLAN_FILE).is_file():
        if read_preparation(work).fingerprint != plan.fingerprint:
            raise UserError(
                f'{output}: was begun with another config or from other files: remove it, or '
                f'choose another --output'
            )
        return
    others = [path.name for path in output.iterdir() if path.name not in (FOLDER, LOCK)]
    if others:
        raise UserError(
            f'{output}: contains {sorted(others)[0]} and is no preparation: choose another --output'
        )
    work.mkdir(parents=True, exist_ok=True)
    plan.write(work)


def _run(
    plan: Preparation, output: Path, workers: int, executor: str, slurm: tuple[str, str]
) -> None:
    from cpt_jax.prepare import executors

    if executor == 'slurm':
        executors.submit_to_slurm(output, plan, workers, executors.SlurmOptions(*slurm))
    elif executor == 'ray':
        executors.run_on_ray(output, plan, workers)
    else:
        _run_locally(plan, output, workers or os.cpu_count() or 1)


def _run_locally(plan: Preparation, output: Path, workers: int) -> None:
    """Runs all stages on this machine, with a progress bar for each."""
    from cpt_jax.prepare.executors import run_stage_locally

    for stage in get_stages(plan):
        sizes = stage.sizes(plan)
        is_bytes = sum(sizes) == plan.size
        unit = {'unit': 'B', 'unit_scale': True} if is_bytes else {'unit': 'task'}
        with tqdm(total=sum(sizes), desc=stage.description, disable=None, **unit) as bar:
            run_stage_locally(output, stage, sizes, workers, bar.update)
