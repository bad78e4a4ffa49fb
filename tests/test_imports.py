"""Tests that imports point one way: from the programs down to the hardware layer."""

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


def read_layers() -> list[set[str]]:
    """Returns the layers of folders drawn in CONTRIBUTING.md, from the lowest to the programs.

    A folder may import from itself and from the layers before its own.
    """
    chain = re.search(r'^ {4}cli -> .*\n(?: {8}-> .*\n)*', CONTRIBUTING.read_text(), re.MULTILINE)
    return [set(re.findall(r'\w+', layer)) for layer in reversed(chain[0].split('->'))]


LAYERS = read_layers()
# The only files directly in cpt_jax/: the public API and an alias. They may import from any layer.
TOP_LEVEL_FILES = {'__init__.py', 'vectors.py'}
# The only files that may read sections of a config; all others take keyword arguments. mixture.py
# constructs the sources of `data.sources`, whose kinds have arguments of their own.
CONFIG_READERS = {
    ('ml_collections', 'configs'): {'runs/config_file.py', 'cli/config_flag.py'},
    ('cpt_jax.runs.config.check_resume',): {'training/setup.py'},
    ('cpt_jax.runs.config.build', 'cpt_jax.runs.config.check_section'): {
        'data/mixture.py',
        'origin/earlier_run.py',  # reads the stored config of a run
        'plan/lowering.py',
        'prepare/plan.py',  # has configs of its own
        'training/contrastive.py',
        'training/language_model.py',
        'training/loop.py',
        'training/resolve.py',
        'training/run_tokenizer.py',
        'training/sections.py',
    },
}
# Packages that only tests may use, private or superseded modules, and code outside the package.
FORBIDDEN = {'torch', 'transformers', 'tensorflow', 'jax._src', 'flax.linen', 'tests', 'launch'}


@functools.cache
def collect_imports(path: Path) -> set[str]:
    """Returns the full names that a file imports, also within functions.

    `from a import b` gives both `a` and `a.b`.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}:{node.lineno}: relative import; use the full name'
            found |= {node.module} - {'cpt_jax'} | {
                f'{node.module}.{alias.name}' for alias in node.names
            }
    return found


def get_folder(path: Path) -> str:
    """Returns the folder of cpt_jax that a file is in."""
    return path.relative_to(PACKAGE).parts[0]


def collect_imported_folders(path: Path) -> set[str]:
    """Returns the folders of cpt_jax that a file imports from."""
    names = [name for name in collect_imports(path) if name.startswith('cpt_jax.')]
    candidates = {name.split('.')[1] for name in names}
    return {name for name in candidates if (PACKAGE / name).is_dir()}


def is_within(name: str, packages: set[str]) -> bool:
    """Returns whether a module is one of the packages or inside one of them."""
    return any(name == package or name.startswith(package + '.') for package in packages)


def test_every_folder_is_in_one_layer():
    folders = {
        path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != '__pycache__'
    }
    drawn = [name for layer in LAYERS for name in layer]
    assert sorted(drawn) == sorted(folders)
    assert {path.name for path in PACKAGE.glob('*.py')} == TOP_LEVEL_FILES


@pytest.mark.parametrize(
    'path',
    [path for path in FILES if path.parent != PACKAGE],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_imports_point_one_way(path):
    """Imports under TYPE_CHECKING count too: a cycle of types also confuses readers."""
    folder = get_folder(path)
    index = next(i for i, layer in enumerate(LAYERS) if folder in layer)
    below = set().union(*LAYERS[:index])
    assert collect_imported_folders(path) <= below | {folder}
    assert not [name for name in collect_imports(path) if is_within(name, FORBIDDEN)]


@pytest.mark.parametrize(
    'path',
    sorted((ROOT / 'launch').rglob('*.py')),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_launch_script_imports_only_its_program(path):
    module = '.'.join(path.relative_to(ROOT / 'launch').with_suffix('').parts)
    expected = {f'cpt_jax.cli.{module}', f'cpt_jax.cli.{module}.run'}
    if module == 'train':  # SIGTERM must have a handler before the program's imports
        early_stop = 'cpt_jax.runtime.early_stop'
        expected |= {early_stop, f'{early_stop}.exit_on_sigterm'}
    assert collect_imports(path) == expected


@pytest.mark.parametrize('names', CONFIG_READERS, ids=lambda names: names[0])
def test_only_listed_modules_read_configs(names):
    found = {
        path for path in FILES if any(is_within(name, {*names}) for name in collect_imports(path))
    }
    assert found <= {PACKAGE / name for name in CONFIG_READERS[names]}
    assert found, f'no module imports {names}: they were renamed'


def test_modules_have_no_import_cycle():
    modules = {'.'.join(path.relative_to(ROOT).with_suffix('').parts): path for path in FILES}
    imported = {name: collect_imports(path) & modules.keys() for name, path in modules.items()}
    visited = set()

    def visit(name: str, importers: tuple[str, ...]) -> None:
        assert name not in importers, ' -> '.join([*importers[importers.index(name) :], name])
        if name not in visited:
            for other in sorted(imported[name]):
                visit(other, (*importers, name))
            visited.add(name)

    for name in modules:
        visit(name, ())


def test_loss_does_not_import_the_model():
    folders = map(collect_imported_folders, (PACKAGE / 'loss').glob('*.py'))
    assert set.union(*folders) == {'runtime', 'loss'}


def test_data_modules_do_not_import_jax():
    """Programs that prepare data then start quickly, in any number of processes."""
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


def test_training_does_not_import_other_frameworks(tmp_path):
    """The packages that training needs do not import them either, if they are installed: that would
    take seconds.
    """
    frameworks = FORBIDDEN & {'torch', 'transformers', 'tensorflow'}
    code = f"""
import sys
from pathlib import Path
from cpt_jax.training import loop, setup
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.training.recording import Recorder
Recorder(RunDir(Path({str(tmp_path)!r})), 0, 1, is_writer=True).close()
sys.exit(', '.join({frameworks} & sys.modules.keys()) or None)
"""
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_programs_do_not_import_jax_at_module_level():
    """JAX reads JAX_PLATFORMS when it is imported, so a program sets it first. Otherwise JAX prints
    errors if libtpu is installed and no TPU is attached.

    Each program is imported in a forked process, because programs define flags of the same names.
    The modules that they share are imported once.
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
    assert len(programs) == 9
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
