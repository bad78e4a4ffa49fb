"""What an installed package holds: every module, and every file that one of them reads."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / 'pyproject.toml').read_text())
SETUPTOOLS = SETTINGS['tool']['setuptools']
ROOMS = ('cpt_jax', 'configs')


def files_of(room: str) -> list[Path]:
    return [
        path
        for path in sorted((ROOT / room).rglob('*'))
        if path.is_file() and '__pycache__' not in path.parts
    ]


def test_every_module_is_in_a_package():
    """setuptools finds folders with an __init__.py only."""
    assert set(SETUPTOOLS['packages']['find']['include']) == {f'{room}*' for room in ROOMS}
    for room in ROOMS:
        folders = {path.parent for path in files_of(room) if path.suffix == '.py'}
        assert folders and all((folder / '__init__.py').is_file() for folder in folders)


def test_every_other_file_is_declared():
    declared = set()
    for room, patterns in SETUPTOOLS['package-data'].items():
        for pattern in patterns:
            declared |= set((ROOT / room).glob(pattern))
    others = {path for room in ROOMS for path in files_of(room) if path.suffix != '.py'}
    assert others and others <= declared


def test_every_program_is_a_console_script():
    scripts = SETTINGS['project']['scripts']
    programs = {path.stem for path in (ROOT / 'launch').glob('*.py')}
    assert scripts == {f'cpt-{name}': f'cpt_jax.cli.{name}:run' for name in programs}
