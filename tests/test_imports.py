"""Imports point one way, from the programs down to the machine."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'cpt_jax'
CONTRIBUTING = ROOT / 'CONTRIBUTING.md'
FILES = sorted(PACKAGE.rglob('*.py'))


def rows() -> list[set[str]]:
    """The folders in the order that CONTRIBUTING.md draws, from the machine to the programs. A
    folder may import from the rows before its own.
    """
    chain = re.search(r'^ {4}cli -> .*\n(?: {8}-> .*\n)*', CONTRIBUTING.read_text(), re.MULTILINE)
    return [set(re.findall(r'\w+', row)) for row in reversed(chain[0].split('->'))]


ROWS = rows()
# The few files directly in cpt_jax/ are the public API and aliases, which import whatever they
# offer.
LOOSE = {'__init__.py', 'vectors.py'}
# The few files that know the sections of a config; everything else takes keyword arguments.
# mixture.py makes the sources of `data.sources`, whose kinds have arguments of their own.
KNOW_CONFIGS = {
    ('ml_collections', 'configs'): {'runs/config_file.py', 'cli/config_flag.py'},
    ('cpt_jax.runs.config.check_resume',): {'training/setup.py'},
    ('cpt_jax.runs.config.build', 'cpt_jax.runs.config.check_section'): {
        'data/mixture.py',
        'origin/earlier_run.py',  # of configs that a run stored
        'plan/lowering.py',
        'training/contrastive.py',
        'training/language_model.py',
        'training/loop.py',
        'training/resolve.py',
        'training/run_tokenizer.py',
        'training/sections.py',
    },
}
# Packages that are oracles of tests at most, and modules that may change without notice.
NEVER = {'torch', 'transformers', 'tensorflow', 'jax._src', 'flax.linen', 'tests', 'launch'}


@functools.cache
def imports(path: Path) -> set[str]:
    """Full names of what a file imports, wherever it does; of `from a import b` both a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}:{node.lineno}: name the whole module'
            found |= {node.module} - {'cpt_jax'} | {
                f'{node.module}.{alias.name}' for alias in node.names
            }
    return found


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


def rooms_imported(path: Path) -> set[str]:
    """The folders of cpt_jax that a file imports from."""
    names = [name for name in imports(path) if begins(name, {'cpt_jax'})]
    return {
        name.split('.')[1]
        for name in names
        if '.' in name and (PACKAGE / name.split('.')[1]).is_dir()
    }


def begins(name: str, prefixes: set[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + '.') for prefix in prefixes)


def test_every_folder_has_its_row():
    rooms = {
        path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != '__pycache__'
    }
    named = [name for row in ROWS for name in row]
    assert sorted(named) == sorted(rooms)
    assert {path.name for path in PACKAGE.glob('*.py')} == LOOSE


@pytest.mark.parametrize(
    'path',
    [path for path in FILES if path.parent != PACKAGE],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_imports_point_one_way(path):
    """TYPE_CHECKING included: a circle of types is a circle for the reader."""
    row = next(i for i, row in enumerate(ROWS) if room(path) in row)
    below = set().union(*ROWS[:row])
    assert rooms_imported(path) <= below | {room(path)}
    assert not [name for name in imports(path) if begins(name, NEVER)]


@pytest.mark.parametrize(
    'path',
    sorted((ROOT / 'launch').rglob('*.py')),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_a_launch_script_imports_its_program_alone(path):
    module = '.'.join(path.relative_to(ROOT / 'launch').with_suffix('').parts)
    assert imports(path) == {f'cpt_jax.cli.{module}', f'cpt_jax.cli.{module}.run'}


@pytest.mark.parametrize('names', KNOW_CONFIGS, ids=lambda names: names[0])
def test_only_a_few_modules_know_configs(names):
    found = {path for path in FILES if any(begins(name, {*names}) for name in imports(path))}
    assert found <= {PACKAGE / name for name in KNOW_CONFIGS[names]}
    assert found, 'the names are those of the package'


def test_no_module_imports_itself_in_a_circle():
    modules = {'.'.join(path.relative_to(ROOT).with_suffix('').parts): path for path in FILES}
    below = {name: imports(path) & modules.keys() for name, path in modules.items()}
    done = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, ' -> '.join([*above[above.index(name) :], name])
        if name not in done:
            for other in sorted(below[name]):
                visit(other, (*above, name))
            done.add(name)

    for name in modules:
        visit(name, ())


def test_the_loss_knows_nothing_of_the_model():
    assert set.union(*map(rooms_imported, (PACKAGE / 'loss').glob('*.py'))) == {'runtime', 'loss'}


def test_reading_texts_needs_no_jax():
    """So that a program that prepares data starts at once, in as many processes as it likes."""
    needs_jax = {'batch', 'mixture'}
    paths = [*(PACKAGE / 'data').glob('[a-z]*.py'), *(PACKAGE / 'data/sources').glob('[a-z]*.py')]
    modules = [
        'cpt_jax.text.tokenizer',
        'cpt_jax.text.pretrained_tokenizer',
        'cpt_jax.runs.config',
        'cpt_jax.storage.cache',
        *sorted(
            '.'.join(path.relative_to(ROOT).with_suffix('').parts)
            for path in paths
            if path.stem not in needs_jax
        ),
    ]
    assert 'cpt_jax.data.sources.jsonl' in modules
    code = (
        f'import sys, importlib; [importlib.import_module(name) for name in {modules}]; '
        f'sys.exit("jax" in sys.modules)'
    )
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0


def test_a_run_starts_without_the_libraries_of_the_oracles(tmp_path):
    """Nor do the packages that it needs bring them in where they are installed: that takes
    seconds.
    """
    code = f"""
import sys
from pathlib import Path
from cpt_jax.training import loop, setup
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.training.recording import Recorder
Recorder(RunDir(Path({str(tmp_path)!r})), 0, 1, writing=True).close()
sys.exit(', '.join({NEVER & {'torch', 'transformers', 'tensorflow'}} & sys.modules.keys()) or None)
"""
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_program_imports_jax_after_it_has_chosen_its_platform():
    """JAX reads JAX_PLATFORMS when it is imported; where libtpu is installed and no TPU is there,
    it would complain. Each program is imported in a process of its own, as their flags are alike;
    what they have in common is imported once.
    """
    names = sorted(path.stem for path in (PACKAGE / 'cli').glob('*.py'))
    programs = [name for name in names if (ROOT / 'launch' / f'{name}.py').exists()]
    code = f"""
import importlib, os, sys
import cpt_jax.cli.program, cpt_jax.evals.registry
for name in {programs}:
    child = os.fork()
    if not child:
        importlib.import_module(f'cpt_jax.cli.{{name}}')
        os._exit('jax' in sys.modules)
    if os.waitpid(child, 0)[1]:
        sys.exit(f'cpt_jax.cli.{{name}} imports jax, or cannot be imported')
"""
    assert len(programs) == 6
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
