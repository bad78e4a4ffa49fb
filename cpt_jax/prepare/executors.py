"""Runs stages on datatrove's executors: processes of this machine, Slurm, or Ray.

An executor stores which tasks are complete, so that a command that was killed goes on when it is
started again.
"""

import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger

from cpt_jax.prepare.plan import Preparation
from cpt_jax.prepare.stages import Stage, get_stages, run_task
from cpt_jax.prepare.work_folder import WorkFolder
from cpt_jax.runtime.errors import UserError


class TaskStep(PipelineStep):
    """The only step of each pipeline: does a task of a stage.

    Attributes:
      output: output directory.
      stage: name of the stage.
    """

    type = 'cpt_jax'
    name = 'prepare'

    def __init__(self, output: str, stage: str):
        super().__init__()
        self.output = output
        self.stage = stage

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> tuple[()]:
        del data, world_size
        run_task(Path(self.output), self.stage, rank)
        return ()


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's local executor, with three changes: its workers end when their parent is killed,
    there is no process of a Manager, which would outlive it too, and a progress bar takes the place
    of the log.
    """

    def run_stage(self, sizes: Sequence[int], advance: Callable[[int], object]) -> None:
        """Does the tasks that are not complete.

        Args:
          sizes: size of each task.
          advance: function that is called with the size of each complete task.
        """
        logger.remove()
        missing = self.get_incomplete_ranks(range(self.tasks))
        advance(sum(sizes) - sum(sizes[rank] for rank in missing))
        if self.workers == 1 or len(missing) <= 1:
            for rank in missing:
                self._run_for_rank(rank)
                advance(sizes[rank])
            return
        context = get_context('forkserver')
        context.set_forkserver_preload(['cpt_jax.prepare.executors'])
        reader, writer = context.Pipe(duplex=False)
        workers = min(self.workers, len(missing))
        with ProcessPoolExecutor(workers, context, end_with_parent, (reader,)) as pool:
            try:
                waiting = {pool.submit(self._run_for_rank, rank): rank for rank in missing}
                while waiting:
                    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                        advance(sizes[waiting.pop(future)])
            except BrokenProcessPool:
                writer.close()
                raise UserError(
                    'a worker was killed, perhaps because memory ran out: run the same command '
                    'again to go on, with fewer --workers'
                ) from None
            except BaseException:
                writer.close()  # ends the workers, whose tasks are done again at the next start
                raise
        writer.close()
        reader.close()

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> None:
        for step in self.pipeline:
            step(None, rank, self.world_size)
        self.mark_rank_as_completed(rank)


def end_with_parent(reader: Connection) -> None:
    """Ends this process as soon as the parent ends, for whatever reason.

    Args:
      reader: end of a pipe whose other end only the parent has. Reading returns when it is closed.
    """

    def watch() -> None:
        try:
            reader.recv_bytes()
        except EOFError:
            pass
        os._exit(1)

    logger.remove()
    threading.Thread(target=watch, daemon=True).start()


def run_stage_locally(
    output: Path, stage: Stage, sizes: Sequence[int], workers: int, advance: Callable[[int], object]
) -> None:
    """Does the tasks of a stage in processes of this machine.

    Args:
      output: output directory.
      stage: the stage.
      sizes: size of each task.
      workers: number of processes.
      advance: function that is called with the size of each complete task.
    """
    LocalExecutor(
        [TaskStep(str(output), stage.name)],
        tasks=len(sizes),
        workers=1 if stage.in_parent else workers,
        logging_dir=str(get_log_folder(output, stage)),
    ).run_stage(sizes, advance)


class SlurmOptions(NamedTuple):
    """How jobs are submitted to Slurm.

    Attributes:
      partition: partition of the jobs.
      time: time limit of a task, as HH:MM:SS.
    """

    partition: str
    time: str


def submit_to_slurm(
    output: Path, plan: Preparation, workers: int, options: SlurmOptions
) -> str | int:
    """Submits a job array for each stage, which starts when the one before has ended.

    The output directory, the input files and this Python environment must be visible on all nodes.

    Args:
      output: output directory.
      plan: the preparation.
      workers: maximum number of tasks at a time; 0: no limit.
      options: partition and time limit.

    Returns:
      The id of the last job; -1 if every task is complete.
    """
    executor = None
    for stage in get_stages(plan):
        executor = SlurmPipelineExecutor(
            [TaskStep(str(output), stage.name)],
            tasks=len(stage.sizes(plan)),
            workers=workers or -1,
            time=options.time,
            partition=options.partition,
            qos='',  # the cluster's default
            job_name=f'prepare_{stage.name}',
            venv_path=str(Path(sys.prefix, 'bin', 'activate')),
            logging_dir=str(get_log_folder(output, stage)),
            depends=executor,
        )
    assert executor is not None
    executor.run()
    return executor.job_id


def run_on_ray(output: Path, plan: Preparation, workers: int) -> None:
    """Does all stages as tasks of a Ray cluster, which the environment of Ray names.

    Args:
      output: output directory, visible on all nodes.
      plan: the preparation.
      workers: maximum number of tasks at a time; 0: no limit.

    Raises:
      UserError: ray is not installed, or a task failed.
    """
    try:
        import ray
    except ImportError:
        raise UserError('--executor ray needs ray: pip install ray') from None
    from datatrove.executor.ray import RayPipelineExecutor

    ray.init(ignore_reinit_error=True, log_to_driver=False)
    for stage in get_stages(plan):
        executor = RayPipelineExecutor(
            [TaskStep(str(output), stage.name)],
            tasks=len(stage.sizes(plan)),
            workers=workers or -1,
            logging_dir=str(get_log_folder(output, stage)),
        )
        executor.run()
        missing = executor.get_incomplete_ranks()
        if missing:
            raise UserError(
                f'{len(missing):,} tasks of stage {stage.name} failed on Ray, the first with the '
                f'log {get_log_folder(output, stage)}/logs/task_{missing[0]:05d}.log: run the same '
                f'command again to go on'
            )


def get_log_folder(output: Path, stage: Stage) -> Path:
    """Returns the folder in which an executor stores which tasks of a stage are complete."""
    return WorkFolder(output).root / 'executor' / stage.name
