"""The GPUs of a host that one of its processes uses, under Slurm and Open MPI.

There, JAX gives a process the one GPU with the number of the process on its host. With fewer
processes than GPUs, it would leave the other GPUs idle.
"""

import dataclasses
import os
import re
from pathlib import Path

from cpt_jax.runtime.errors import UserError

_DRIVER = Path('/proc/driver/nvidia/gpus')  # the driver has a folder here for each GPU


@dataclasses.dataclass(frozen=True)
class _Task:
    """The place of this process on its host.

    Attributes:
      index: number of the process among those on its host.
      count: number of processes on the host.
      host_gpus: number of GPUs that the processes of the host have together; 0 if unknown.
    """

    index: int
    count: int
    host_gpus: int


def list_own_gpus() -> list[int] | None:
    """Returns the GPUs for this process, as indices into those that it can see.

    The processes of a host divide its GPUs evenly. If the launcher has divided them already, so
    that each process sees its own ones only, the process takes them all.

    Returns:
      The indices, or None if there is no GPU, or neither Slurm nor Open MPI started this process.

    Raises:
      UserError: the number of GPUs is not a multiple of the number of processes.
    """
    visible = _count_visible_gpus()
    task = _read_task()
    if not visible or not task or os.environ.get('JAX_PLATFORMS') == 'cpu':
        return None
    if visible < task.host_gpus and visible * task.count <= task.host_gpus:
        return list(range(visible))
    if visible % task.count:
        raise UserError(
            f'{task.count} processes on this host cannot divide its {visible} GPUs evenly: start '
            f'one process per host or per GPU'
        )
    own = visible // task.count
    return list(range(task.index * own, (task.index + 1) * own))


def _count_visible_gpus() -> int:
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    if visible is None:
        return len(list(_DRIVER.iterdir())) if _DRIVER.is_dir() else 0
    return len([name for name in visible.split(',') if name.strip() not in ('', '-1')])


def _read_task() -> _Task | None:
    environ = os.environ
    if 'SLURM_LOCALID' in environ and 'SLURM_PROCID' in environ:
        host = int(environ.get('SLURM_NODEID', 0))
        tasks = environ.get('SLURM_STEP_TASKS_PER_NODE') or environ.get('SLURM_TASKS_PER_NODE', '1')
        return _Task(
            int(environ['SLURM_LOCALID']), _expand_counts(tasks)[host], _count_slurm_gpus()
        )
    if 'OMPI_COMM_WORLD_LOCAL_RANK' in environ:
        count = int(environ.get('OMPI_COMM_WORLD_LOCAL_SIZE', 1))
        return _Task(int(environ['OMPI_COMM_WORLD_LOCAL_RANK']), count, 0)
    return None


def _count_slurm_gpus() -> int:
    """Returns the number of GPUs of this job step on this host, or 0 if Slurm does not say."""
    if step := os.environ.get('SLURM_STEP_GPUS'):
        return len(step.split(','))
    return int(os.environ.get('SLURM_GPUS_ON_NODE') or 0)


def _expand_counts(text: str) -> list[int]:
    """Expands Slurm's short form of a list, such as '2(x3),1' for 2, 2, 2, 1."""
    counts = []
    for number, times in re.findall(r'(\d+)(?:\(x(\d+)\))?', text):
        counts += [int(number)] * int(times or 1)
    return counts
