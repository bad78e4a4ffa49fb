"""Start of programs, as a user sees it: help, flags, config files."""

import ast
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cpt_jax.cli import program as program_module
from tests.programs import ROOT, run_program


def run_to_error(folder: Path, program: str, *flags: str) -> str:
    """Runs a program that must fail with a one-line error; returns the line."""
    status, output, errors = run_program(program, *flags, cwd=folder)
    (line,) = errors.splitlines()
    assert status == 1 and output == '' and line.startswith('error: ')
    return line


@pytest.mark.parametrize(
    ('program', 'flags'),
    [
        ('train', ['--config', '--workdir', '--processes']),
        ('evaluate', ['--model', '--tasks', '--data_dir', '--output']),
        ('merge', ['--models', '--weights', '--method', '--output']),
    ],
)
def test_help_shows_example_and_flags(tmp_path, program, flags):
    """Unlike run_program, starts a new Python interpreter."""
    command = sys.executable, str(ROOT / f'launch/{program}.py'), '--help'
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and done.stderr == ''
    assert f'python launch/{program}.py --' in done.stdout and 'Example' in done.stdout
    assert all(flag in done.stdout for flag in flags)


def test_examples_in_docstrings_can_be_pasted():
    """A line ends in a backslash exactly if the command continues on the next one."""
    examples = 0
    for folder in ('benchmarks', 'configs', 'cpt_jax/cli', 'launch'):
        for path in (ROOT / folder).rglob('*.py'):
            lines = (ast.get_docstring(ast.parse(path.read_text())) or '').splitlines()
            for line, following in itertools.pairwise([*lines, '']):
                if line.strip().startswith('python '):
                    examples += 1
                    ends = not following.strip() or following.strip().startswith('python ')
                    assert ends != line.endswith('\\'), f'{path}: {line}'
    assert examples > 30


CONFIGS = {
    'raises.py': 'raise RuntimeError("this is\\nno good")',
    'syntax.py': 'def get_config(:',
    'imports.py': 'import no_such_module',
    'divides.py': 'def get_config():\n  return 1 / 0',
    'looks.py': 'def get_config():\n  return {}["no such key"]',
    'nothing.py': 'x = 1',
    'number.py': 'def get_config():\n  return 3',
}


@pytest.mark.parametrize(
    ('flags', 'expected'),
    [
        (['--no_such_flag=1'], ["'no_such_flag'"]),
        (['stray'], ['stray: not a flag']),
        (['--config', 'configs/quickstart.py', 'stray'], ['stray: not a flag']),
        ([], ['--config is missing', 'configs/quickstart.py']),
        (['--config', ''], ['--config is missing']),
        (['--config'], ['--config']),
        (['--config', 'nowhere.py'], ['--config nowhere.py: no such file']),
        (['--config', '.'], ['--config .: no such file']),
        (['--config', 'raises.py'], ['--config', 'RuntimeError: this is no good']),
        (['--config', 'syntax.py'], ['--config', 'SyntaxError']),
        (['--config', 'imports.py'], ['--config', 'no_such_module']),
        (['--config', 'divides.py'], ['--config', 'ZeroDivisionError']),
        (['--config', 'looks.py'], ['--config', 'no such key']),
        (['--config', 'nothing.py'], ['--config', 'get_config']),
        (['--config', 'number.py'], ['--config number.py']),
        (
            ['--config', 'configs/quickstart.py', '--config.train.steps=many'],
            ['--config.train.steps=many'],
        ),
        (
            ['--config', 'configs/quickstart.py', '--config.lora.r=4'],
            ['--config.lora.r: there is no key r; lora has', 'rank', 'configs/base.py'],
        ),
        (['--config', 'configs/quickstart.py', '--processes=x'], ['--processes=x']),
    ],
    ids=str,
)
def test_wrong_flags_and_configs_are_one_line_errors(tmp_path, flags, expected):
    for name, text in CONFIGS.items():
        (tmp_path / name).write_text(text + '\n')
    line = run_to_error(tmp_path, 'train', *flags)
    assert all(word in line for word in expected), line
    assert not (tmp_path / 'runs').exists()


def test_other_programs_report_user_errors_as_train_does(tmp_path):
    assert '--model nowhere: no run' in run_to_error(tmp_path, 'evaluate', '--model', 'nowhere')
    assert 'give --model, or --compare' in run_to_error(tmp_path, 'evaluate')
    line = run_to_error(tmp_path, 'merge', '--models=a,b', '--weights=1,x', '--output=out')
    assert '--weights 1,x: must be numbers' in line
    line = run_to_error(tmp_path, 'merge', '--models=a,b', '--output=out')
    assert '--models a: no run with a checkpoint' in line


@pytest.mark.parametrize(
    'flags', [['--config', 'configs/quickstart.py'], ['--config=configs/quickstart.py']], ids=str
)
def test_configs_are_found_from_any_directory(tmp_path, flags):
    """The error for an unknown key shows which file was loaded."""
    line = run_to_error(tmp_path, 'train', *flags, '--config.train.stepz=4')
    assert 'stepz' in line and 'steps' in line
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / 'quickstart.py').write_text(
        'raise RuntimeError("the one that is here")\n'
    )
    assert 'the one that is here' in run_to_error(tmp_path, 'train', *flags)


SOURCE = ['--config', 'configs/small_pairs.py', '--config.data.sources.pairs.path=pairs.jsonl']


def test_default_source_argument_is_set_by_a_flag(tmp_path):
    """The flag from the error message works: then there are too few pairs instead."""
    (tmp_path / 'pairs.jsonl').write_text('{"x": "a", "y": "b"}\n' * 30 + 'no JSON\n')
    line = run_to_error(tmp_path, 'train', *SOURCE)
    assert 'pairs.jsonl:31: not JSON' in line and 'raise max_bad_share' in line
    assert '--config.data.sources.pairs.NAME=VALUE' in line
    raised = [*SOURCE, '--config.data.sources.pairs.max_bad_share=0.1']
    line = run_to_error(tmp_path, 'train', *raised, '--config.data.sources.pairs.holdout=0')
    assert 'data.sources.pairs has 30 pairs, fewer than train.batch_pairs=256' in line, line


@pytest.mark.parametrize(
    ('flags', 'expected'),
    [
        (['--config', 'configs/prompteol.py:opt-3b'], 'choose one of opt-125m, opt-350m, '),
        (['--config', 'configs/quickstart.py:x'], 'quickstart.py takes no argument'),
        (['--config', 'configs/prompteol_opt_13b.py'], 'is now configs/prompteol.py:opt-13b'),
        ([*SOURCE, '--config.data.sources.pairs.max_bad=1'], 'did you mean max_bad_share?'),
        (
            [*SOURCE, '--config.data.sources.pairs.max_chars=x'],
            'error: --config.data.sources.pairs.max_chars=x: must be an integer',
        ),
        ([*SOURCE, '--config.optimizer.peak_lr=x'], 'optimizer.peak_lr=x: must be a number'),
        ([*SOURCE, '--config.data.packed=maybe'], 'data.packed=maybe: must be True or False'),
        ([*SOURCE, '--steps=5'], "flag 'steps'; did you mean --config.train.steps?"),
        (
            [
                *SOURCE[:2],
                "--config.data.sources.pairs={'a': 1}",
                '--config.data.sources.pairs.x=y',
            ],
            '--config: KeyError',
        ),
    ],
    ids=str,
)
def test_wrong_arguments_and_source_keys_are_one_line_errors(tmp_path, flags, expected):
    assert expected in run_to_error(tmp_path, 'train', *flags)


def test_default_workdir_has_the_config_argument_or_its_former_name(tmp_path):
    """The directory contains another model, so the program fails before it reads anything."""
    flags = ['--config', 'configs/prompteol.py:opt-125m', '--config.init_from=nowhere']
    for name in ('prompteol_opt_125m', 'prompteol-opt-125m'):
        (tmp_path / 'runs' / name).mkdir(parents=True)
        (tmp_path / 'runs' / name / 'config.json').write_text('{}')
        _, output, errors = run_program('train', *flags, cwd=tmp_path)
        assert f'error: runs/{name}/config.json is not the config of a run' in errors
        assert output.startswith('continuing in') == (name == 'prompteol_opt_125m')


def test_any_sign_of_an_accelerator_is_detected(tmp_path, monkeypatch):
    """Without a sign, JAX_PLATFORMS is set to cpu, because libtpu would print warnings."""
    for name in [name for name in os.environ if name.startswith('TPU_')]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(program_module, 'find_spec', lambda name: None)
    assert not program_module._may_have_accelerator(tmp_path)
    for hint in ('dev/accel0', 'dev/vfio/0', 'sys/bus/pci/devices/0000:00:04.0/vendor'):
        root = tmp_path / hint.replace('/', '_')
        (root / hint).parent.mkdir(parents=True)
        (root / hint).write_text('0x1ae0\n')
        assert program_module._may_have_accelerator(root), hint
    monkeypatch.setenv('TPU_WORKER_ID', '0')
    assert program_module._may_have_accelerator(tmp_path)
    monkeypatch.delenv('TPU_WORKER_ID')
    monkeypatch.setattr(program_module, 'find_spec', lambda name: object())
    assert program_module._may_have_accelerator(tmp_path)
