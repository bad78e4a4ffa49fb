"""The stages of a preparation. Each is a number of independent tasks, which any engine can run."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cpt_jax.prepare.benchmark_texts import find_test_sets, iterate_test_texts
from cpt_jax.prepare.consistency import embed_sample, filter_shard, load_model
from cpt_jax.prepare.counts import check_unreadable
from cpt_jax.prepare.decontamination import index_test_texts
from cpt_jax.prepare.duplicates import find_repeated
from cpt_jax.prepare.finish import finish, read_counts
from cpt_jax.prepare.judge import judge_task
from cpt_jax.prepare.near_duplicates import cluster, find_links
from cpt_jax.prepare.plan import Preparation, read_preparation
from cpt_jax.prepare.work_folder import WorkFolder
from cpt_jax.prepare.write import get_benchmark_path, write_task
from cpt_jax.runtime.errors import UserError


class Stage(NamedTuple):
    """A stage.

    Attributes:
      name: its name.
      description: what it does, for the progress bar.
      sizes: function from a plan to the size of each task, for the estimate; without a task the
        stage is left out.
      run_task: function from (plan, work folder, index of the task) that does the work.
      in_parent: whether tasks run one after the other in the program itself, which has the
        accelerators, if the executor is local.
    """

    name: str
    description: str
    sizes: Callable[[Preparation], list[int]]
    run_task: Callable[[Preparation, WorkFolder, int], None]
    in_parent: bool = False


def _compare(plan: Preparation, folder: WorkFolder, rank: int) -> None:
    if rank == 0:
        check_unreadable(read_counts(plan, folder, 'judged'), plan.output.max_bad_share)
    find_repeated(folder, rank, len(plan.tasks))


def _find_links(plan: Preparation, folder: WorkFolder, rank: int) -> None:
    find_links(folder, rank, len(plan.tasks), plan.duplicates.near_similarity)


def _cluster(plan: Preparation, folder: WorkFolder, rank: int) -> None:
    del rank
    cluster(folder, plan.near_partitions, len(plan.tasks))


def _index_benchmarks(plan: Preparation, folder: WorkFolder, rank: int) -> None:
    del rank
    tasks = find_test_sets(plan.decontamination.data_dir)
    documents = plan.decontamination.documents
    texts = {name: iterate_test_texts(task, documents) for name, task in tasks.items()}
    index_test_texts(texts).save(get_benchmark_path(folder))


def _embed_sample(plan: Preparation, folder: WorkFolder, rank: int) -> None:
    del rank
    settings = plan.consistency
    embed_sample(folder, len(plan.tasks), settings.sample, load_model(settings.model))


def _filter_shard(plan: Preparation, folder: WorkFolder, rank: int) -> None:
    settings = plan.consistency
    filter_shard(folder, rank, settings.top_k, load_model(settings.model))


def _finish(plan: Preparation, folder: WorkFolder, rank: int) -> None:
    del rank
    finish(plan, folder)


def _get_task_sizes(plan: Preparation) -> list[int]:
    return [task.size for task in plan.tasks]


STAGES = (
    Stage('judge', 'reading and filtering', _get_task_sizes, judge_task),
    Stage('compare', 'finding duplicates', lambda plan: [1] * plan.partitions, _compare),
    Stage(
        'links',
        'finding near duplicates',
        lambda plan: [1] * plan.near_partitions if plan.duplicates.near else [],
        _find_links,
    ),
    Stage(
        'cluster',
        'grouping near duplicates',
        lambda plan: [1] if plan.duplicates.near else [],
        _cluster,
    ),
    Stage(
        'benchmarks',
        'reading test sets',
        lambda plan: [1] if plan.decontamination.data_dir else [],
        _index_benchmarks,
    ),
    Stage('write', 'writing pairs', _get_task_sizes, write_task),
    Stage(
        'sample',
        'embedding a sample',
        lambda plan: [1] if plan.consistency.model else [],
        _embed_sample,
        in_parent=True,
    ),
    Stage(
        'consistency',
        'filtering pairs by consistency',
        lambda plan: _get_task_sizes(plan) if plan.consistency.model else [],
        _filter_shard,
        in_parent=True,
    ),
    Stage('finish', 'writing the data set', lambda plan: [1], _finish),
)


def get_stages(plan: Preparation) -> list[Stage]:
    """Returns the stages of a preparation that have a task, in order."""
    return [stage for stage in STAGES if stage.sizes(plan)]


def run_task(output: Path, stage: str, rank: int) -> None:
    """Does a task of a stage, in any process that sees the output directory.

    Raises:
      UserError: the files cannot be used, or the disk is full.
    """
    folder = WorkFolder(output)
    (found,) = (each for each in STAGES if each.name == stage)
    try:
        found.run_task(read_preparation(folder.root), folder, rank)
    except OSError as error:
        raise UserError(
            f'{error.filename or output}: {error.strerror or error}: free space or correct the '
            f'rights, then run the same command again to go on'
        ) from None
