"""A preparation from its config to its data set."""

import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cpt_jax.data.prepared import SUMMARY_FILE
from cpt_jax.prepare.plan import PLAN_FILE, Preparation, plan_preparation, read_preparation
from cpt_jax.prepare.stages import STAGES
from cpt_jax.prepare.work_folder import FOLDER
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_files import read_json_file
from cpt_jax.storage.locks import try_lock

_MISSING = (
    "launch/prepare.py needs datatrove: pip install 'cpt_jax[prepare]', or in a checkout "
    "pip install -e '.[prepare]'"
)


def prepare(config: Mapping[str, Any], output: Path, workers: int = 1) -> dict[str, Any]:
    """Makes pairs of the sources of a config; goes on with a preparation that was killed.

    Args:
      config: the config.
      output: directory for the data set.
      workers: number of processes.

    Returns:
      The content of summary.json.

    Raises:
      UserError: the extra `prepare` is not installed, the config or a file cannot be used, or the
        directory has something else.
    """
    if find_spec('datatrove') is None:
        raise UserError(_MISSING)
    plan = plan_preparation(config)
    finished = _read_finished(plan, output)
    if finished is not None:
        return finished
    work = output / FOLDER
    with try_lock(output / '.preparing') as mine:
        if not mine:
            raise UserError(f'{output}: another program is preparing it: wait for its end')
        _start(plan, output, work)
        run_locally(plan, output, workers)
    shutil.rmtree(work, ignore_errors=True)
    return read_json_file(output / SUMMARY_FILE)


def _read_finished(plan: Preparation, output: Path) -> dict[str, Any] | None:
    """Returns the summary of a directory that is finished; None if it is not."""
    summary = read_json_file(output / SUMMARY_FILE, optional=True)
    if not summary:
        return None
    if summary.get('preparation') != plan.fingerprint:
        raise UserError(
            f'{output}: was prepared with another config or from other files: choose another '
            f'--output, or remove it'
        )
    return summary


def _start(plan: Preparation, output: Path, work: Path) -> None:
    """Stores the plan, or checks that it is the one that was begun."""
    if (work / PLAN_FILE).is_file():
        if read_preparation(work).fingerprint != plan.fingerprint:
            raise UserError(
                f'{output}: was begun with another config or from other files: remove it, or '
                f'choose another --output'
            )
        return
    others = [path.name for path in output.iterdir() if path.name not in (FOLDER, '.preparing')]
    if others:
        raise UserError(
            f'{output}: contains {sorted(others)[0]} and is no preparation: choose another --output'
        )
    work.mkdir(parents=True, exist_ok=True)
    plan.write(work)


def run_locally(plan: Preparation, output: Path, workers: int) -> None:
    """Runs all stages on this machine, with a progress bar for each."""
    from cpt_jax.prepare.executors import run_stage_locally

    for stage in STAGES:
        sizes = stage.sizes(plan)
        is_bytes = sum(sizes) == plan.size
        unit = {'unit': 'B', 'unit_scale': True} if is_bytes else {'unit': 'task'}
        with tqdm(total=sum(sizes), desc=stage.description, disable=None, **unit) as bar:
            run_stage_locally(output, stage, sizes, workers, bar.update)
