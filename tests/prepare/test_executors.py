import os
import signal
import stat

import pytest
from datatrove.executor import slurm
from datatrove.pipeline.base import PipelineStep

from cpt_jax.prepare.executors import LocalExecutor, SlurmPipelineExecutor
from cpt_jax.prepare.run import prepare
from cpt_jax.runtime.errors import UserError
from tests.prepare.helpers import get_texts, make_config, write_texts


def test_slurm_gets_one_dependent_array_per_stage(tmp_path, monkeypatch):
    """A program in the place of sbatch stores the scripts; their tasks are then run in order."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    script = folder / 'sbatch'
    script.write_text(
        '#!/bin/sh\nn=$(ls "$JOBS" | wc -l)\n'
        '{ echo "$@"; for file; do :; done; cat "$file"; } > "$JOBS/$n"\necho job $n\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    jobs = tmp_path / 'jobs'
    jobs.mkdir()
    monkeypatch.setenv('JOBS', str(jobs))
    monkeypatch.setenv('PATH', f'{folder}:{os.environ["PATH"]}')
    created = []
    run = SlurmPipelineExecutor.launch_job
    monkeypatch.setattr(
        SlurmPipelineExecutor, 'launch_job', lambda self: (created.append(self), run(self))[1]
    )
    config = make_config(text={'path': str(write_texts(tmp_path / 'texts', 6))})
    config['output']['shard_mb'] = 0.002
    output = tmp_path / 'output'
    assert prepare(config, output, 3, 'slurm', ('cpu', '01:00:00')) is None
    scripts = [(jobs / str(n)).read_text() for n in range(len([*jobs.iterdir()]))]
    stages = [text for text in scripts if 'launch_pickled_pipeline' in text]
    assert len(stages) == 4
    assert all('--partition=cpu' in text and '--time=01:00:00' in text for text in stages)
    tasks = len(created[0].pipeline) and created[-1].tasks
    assert f'#SBATCH --array=0-{tasks - 1}%3\n' in stages[0] and '--array=0-0%3\n' in stages[3]
    numbers = [scripts.index(text) for text in stages]
    for before, text in zip(numbers, stages[1:], strict=False):
        assert f'--dependency=afterok:{before}' in text.splitlines()[0]

    monkeypatch.setattr(slurm, 'expand_slurm_nodelist', lambda names: [names])
    monkeypatch.setenv('SLURM_NODELIST', 'node')
    for executor in sorted(created, key=lambda each: int(each.job_id)):
        for rank in range(executor.tasks):
            monkeypatch.setenv('SLURM_ARRAY_TASK_ID', str(rank))
            executor.run()
    monkeypatch.delenv('SLURM_ARRAY_TASK_ID')
    summary = prepare(config, output)
    assert summary['pairs']['train'] == len(get_texts(output)) > 10


def test_ray_is_asked_for_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'ray', None)
    config = make_config(text={'path': str(write_texts(tmp_path / 'texts', 2))})
    with pytest.raises(UserError, match='needs ray: pip install ray'):
        prepare(config, tmp_path / 'output', executor='ray')


def test_a_killed_worker_is_one_line(tmp_path):
    executor = LocalExecutor([_Kill()], tasks=3, workers=2, logging_dir=str(tmp_path))
    with pytest.raises(UserError, match='a worker was killed.* with fewer --workers'):
        executor.run_stage([1, 1, 1], lambda size: None)


class _Kill(PipelineStep):
    def run(self, data=None, rank=0, world_size=1):
        os.kill(os.getpid(), signal.SIGKILL)
