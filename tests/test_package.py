"""The installed package contains every module, and every file that a module reads."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / 'pyproject.toml').read_text())
SETUPTOOLS = SETTINGS['tool']['setuptools']
FOLDERS = ('cpt_jax', 'configs')


def list_files(folder: str) -> list[Path]:
    return [
        path
        for path in sorted((ROOT / folder).rglob('*'))
        if path.is_file() and '__pycache__' not in path.parts
    ]


def test_every_module_is_in_a_package():
    """setuptools finds only folders with an __init__.py."""
    assert set(SETUPTOOLS['packages']['find']['include']) == {f'{folder}*' for folder in FOLDERS}
    for folder in FOLDERS:
        parents = {path.parent for path in list_files(folder) if path.suffix == '.py'}
        assert parents and all((parent / '__init__.py').is_file() for parent in parents)


def test_every_other_file_is_in_the_package_data():
    declared = set()
    for folder, patterns in SETUPTOOLS['package-data'].items():
        for pattern in patterns:
            declared |= set((ROOT / folder).glob(pattern))
    others = {path for folder in FOLDERS for path in list_files(folder) if path.suffix != '.py'}
    assert others and others <= declared


def test_every_program_is_a_console_script():
    scripts = SETTINGS['project']['scripts']
    programs = {path.stem for path in (ROOT / 'launch').glob('*.py')}
    assert scripts == {f'cpt-{name}': f'cpt_jax.cli.{name}:run' for name in programs}


@pytest.mark.parametrize('python', ['3.11', '3.12', '3.13'])
def test_each_package_has_one_version_per_python(python):
    """Two markers that are both true would make pip fail; none would leave a package out."""
    environment = {
        'python_version': python,
        'python_full_version': f'{python}.0',
        'sys_platform': 'linux',  # libtpu has wheels for this platform only
        'platform_machine': 'x86_64',
    }
    for file in ('requirements.txt', 'requirements-dev.txt'):
        lines = (line.partition('#')[0].strip() for line in (ROOT / file).read_text().splitlines())
        required = [Requirement(line) for line in lines if line]
        chosen = [
            requirement.name
            for requirement in required
            if not requirement.marker or requirement.marker.evaluate(environment)
        ]
        assert sorted(chosen) == sorted({requirement.name for requirement in required})
