"""launch/plan.py as a user starts it."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cpt_jax.plan.embedding import EmbeddingPlan
from cpt_jax.plan.planning import Plan
from tests.conftest import FAST_TPU_COMPILATION

ROOT = Path(__file__).parents[2]
SMALL = [
    '--config', 'configs/quickstart.py', '--config.tokenizer.vocab_size=500',
    '--config.model.width=64', '--config.model.heads=1', '--config.model.layers=1',
    '--config.train.batch_pairs=16',
]  # fmt: skip
# Compiles with less optimization, in half of the time (fast_tpu_compilation in conftest.py). The
# step of test_table_is_printed_and_plans_are_written is one on which libtpu aborts at this level.
FAST = {FAST_TPU_COMPILATION[0].upper(): str(FAST_TPU_COMPILATION[1])}


def start(folder: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / 'launch/plan.py'), *flags]
    without = {
        key: value
        for key, value in os.environ.items()
        if key not in ('JAX_PLATFORMS', 'XLA_FLAGS', 'TPU_SKIP_MDS_QUERY')
    }
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=200, env=without | environment
    )


def test_table_is_printed_and_plans_are_written(tmp_path, libtpu):
    """The user has enabled JAX's compilation cache, which the planner must not use."""
    cache = {
        'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'cache'),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    done = start(tmp_path, *SMALL, '--topology', 'v5e:2x2,v5e:1x1', '--json', 'plan.json', **cache)
    assert (done.returncode, done.stderr) == (0, '')
    assert (
        'v5e:2x2\n  chips          4 ' in done.stdout
        and 'v5e:1x1\n  chips          1 ' in done.stdout
    )
    two, one = json.loads((tmp_path / 'plan.json').read_text())
    assert two.keys() == one.keys() == {field.name for field in dataclasses.fields(Plan)}
    assert (
        two['topology'] == 'v5e:2x2'
        and two['fits']
        and two['mesh'] == {'data': 4, 'fsdp': 1, 'tensor': 1}
    )
    row = {
        'kind', 'count', 'sites', 'bytes', 'in_loop', 'loops', 'group', 'gradient', 'network',
        'summed',
    }  # fmt: skip
    assert two['collectives'] and all(found.keys() == row for found in two['collectives'])
    assert one['chips'] == 1 and one['collectives'] == [] and one['network_seconds'] == 0
    assert (
        two['params'] == one['params']
        and two['model_flops_per_step'] == one['model_flops_per_step']
    )


def test_embedding_program_is_planned(tmp_path, libtpu):
    flags = [
        '--topology',
        'v5e:1x1',
        '--program',
        'embed',
        '--length',
        '20',
        '--weights',
        'bfloat16',
    ]
    done = start(tmp_path, *SMALL, *flags, '--json', 'plan.json', **FAST)
    assert (done.returncode, done.stderr) == (0, '')
    assert 'texts of up to 24 tokens' in done.stdout and 'texts a second at most' in done.stdout
    plan = json.loads((tmp_path / 'plan.json').read_text())
    assert (
        plan.keys() == {field.name for field in dataclasses.fields(EmbeddingPlan)}
        and plan['weights'] == 'bfloat16'
    )


def test_sweep_reports_the_fastest_plan_that_fits(tmp_path, libtpu):
    done = start(
        tmp_path,
        *SMALL,
        '--topology',
        'v5e:2x2',
        '--sweep',
        '--sweep_limit',
        '2',
        '--json',
        'sweep.json',
        **FAST,
    )
    assert (done.returncode, done.stderr) == (0, '')
    plans = json.loads((tmp_path / 'sweep.json').read_text())
    assert (
        len(plans) == 2
        and all(plan['fits'] for plan in plans)
        and plans[0]['mesh'] != plans[1]['mesh']
    )
    best = min(plans, key=lambda plan: plan['lower_bound_seconds'])
    mesh = ' '.join(f'--config.mesh.{axis}={size}' for axis, size in best['mesh'].items())
    assert (
        f'fastest that fits: {mesh} --config.model.remat={best["remat"]} '
        f'--config.train.encode_chunks=1' in done.stdout
    )
    progress = [line for line in done.stdout.splitlines() if line.startswith('[')]
    assert (
        progress[0].startswith('[1/2]')
        and progress[0].endswith(' left')
        and progress[1].startswith('[2/2]')
    )
    assert (
        'candidates; 0 more are skipped' in done.stdout
        and 'candidates were not tried' in done.stdout
    )


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        ([], ['--topology is missing', 'v5p:4x4x4']),
        (['--topology', 'v9:2x2'], ["'v9:2x2'", 'v5e:2x2 to v5e:16x16', 'tpu7x:']),
        (['--topology', 'v5e:2x2', '--config.mesh.fsdp=3'], ['mesh.fsdp=3', '4 devices']),
        (
            ['--topology', 'v5e:2x2', '--json', 'nowhere/plan.json'],
            ['--json nowhere/plan.json', 'no such folder'],
        ),
        (['--topology', 'v5e:2x2', '--sweep', '--sweep_limit=0'], ['--sweep_limit=0']),
        (['--topology', 'v5e:2x2', '--fsdp=2'], ['--fsdp is for --program embed']),
        (
            ['--topology', 'v5e:2x2', '--program', 'embed', '--sweep'],
            ['--sweep', '--program embed'],
        ),
    ],
    ids=str,
)
def test_wrong_flags_are_one_line_errors(tmp_path, libtpu, flags, words):
    done = start(tmp_path, *SMALL, *flags)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and done.stdout == '' and line.startswith('error: ')
    assert all(word in line for word in words), line


def test_help_shows_example_and_flags(tmp_path):
    done = start(tmp_path, '--help')
    assert done.returncode == 0 and done.stderr == ''
    assert all(
        word in done.stdout
        for word in (
            'Example:',
            'python launch/plan.py --',
            '--topology',
            '--slices',
            '--json',
            '--sweep',
            '--program',
            'lower bounds',
        )
    )
