"""Imports point one way (launch -> {train, evals} -> embed -> {model, data, checkpoint} -> {mesh, tokenizer} -> errors)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / 'cpt_jax').rglob('*.py'), *(ROOT / 'launch').rglob('*.py')])

# What each part may import of the others; a part is a file or a folder directly in cpt_jax/.
BELOW = {
    '__init__': set(),
    'errors': set(),
    'allocator': set(),
    'atomic': set(),
    'tensorboard': set(),
    'best': {'errors', 'atomic'},
    'code_version': {'__init__'},
    'config': {'errors', 'atomic'},
    'chips': set(),
    'mesh': {'errors'},
    'processes': {'errors'},
    'pod': {'errors', 'atomic'},
    'tokenizer': {'errors', 'atomic'},
    'model': {'errors', 'mesh'},
    'loss': {'errors', 'mesh'},
    'data': {'errors', 'atomic', 'config', 'mesh', 'tokenizer'},
    'checkpoint': {'errors', 'best', 'config', 'tokenizer'},
    'prompt': {'errors'},
    'prompt_tokenizer': {'errors', 'prompt', 'tokenizer'},
    'program': {'allocator', 'errors', 'data', 'processes', 'prompt'},
    'pretrained_tokenizer': {'errors', 'tokenizer'},
    'pretrained': {'errors', 'model', 'tokenizer', 'pretrained_tokenizer'},
    'text_rows': {'model'},
    'embed': {
        'errors',
        'mesh',
        'tokenizer',
        'model',
        'checkpoint',
        'base_model',
        'pretrained',
        'pretrained_tokenizer',
        'prompt',
        'prompt_tokenizer',
        'text_rows',
    },
    'base_model': {'errors', 'mesh', 'model', 'checkpoint', 'pretrained', 'tokenizer'},
    'vectors': {'errors', 'atomic'},
    # A model is a function from texts to vectors; the adapter for mteb loads one, and follow.py watches a run's checkpoints.
    'evals': {'errors', 'atomic', 'best', 'checkpoint', 'data', 'embed', 'processes', 'prompt', 'tensorboard', 'tokenizer'},
}
BELOW['train'] = {*BELOW} - {'evals', 'pod'}
BELOW['export'] = {'errors', 'checkpoint', 'base_model', 'mesh', 'embed', 'evals', 'model', 'pretrained', 'prompt', 'tokenizer'}
BELOW['plan'] = {'errors', 'atomic', 'config', 'mesh', 'chips', 'loss', 'model', 'data', 'embed', 'text_rows', 'train'}
BELOW['launch'] = {*BELOW}
# Oracles of tests at most, and what may change without notice.
NEVER = {'torch', 'transformers', 'tensorflow', 'jax._src', 'flax.linen', 'tests'}
# mixture.py makes the sources of `data.sources`, whose kinds have arguments of their own.
KNOW_CONFIGS = {f'cpt_jax/{name}.py' for name in ('config', 'program', 'data/mixture', 'plan/lowering', 'train/loop', 'train/setup')}


def imports(path: Path) -> set[str]:
    """Full names of what a file imports, wherever it does; of `from a import b` both a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}:{node.lineno}: name the whole module'
            found |= {node.module} - {'cpt_jax'} | {f'{node.module}.{alias.name}' for alias in node.names}
    return found


def part(path: Path) -> str:
    first, *rest = path.relative_to(ROOT).parts
    return 'launch' if first == 'launch' else rest[0].removesuffix('.py')


def parts_imported(path: Path) -> set[str]:
    """The parts of cpt_jax that a file imports."""
    names = [name.partition('.')[2].partition('.')[0] for name in imports(path) if begins(name, {'cpt_jax'})]
    return {name if name in BELOW else '__init__' for name in names}


def begins(name: str, prefixes: set[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + '.') for prefix in prefixes)


def test_the_parts_are_those_that_are_there():
    assert {part(path) for path in FILES} == BELOW.keys()


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    assert parts_imported(path) <= BELOW[part(path)] | {part(path)}
    assert not [name for name in imports(path) if begins(name, NEVER)]


def test_the_loss_does_not_know_the_model():
    assert set.union(*(parts_imported(path) for path in (ROOT / 'cpt_jax/loss').glob('*.py'))) == {'errors', 'mesh', 'loss'}


def test_a_config_is_known_where_a_run_begins_alone():
    for known in ({'ml_collections', 'configs'}, {'cpt_jax.config.build', 'cpt_jax.config.check_section', 'cpt_jax.config.check_resume'}):
        found = {str(path.relative_to(ROOT)) for path in FILES if any(begins(name, known) for name in imports(path))}
        assert found and {path for path in found if not path.startswith('launch/')} <= KNOW_CONFIGS


def test_reading_texts_needs_no_jax():
    """So that a program that prepares data starts at once, in as many processes as it likes."""
    names = {path.stem for path in (ROOT / 'cpt_jax/data').glob('[a-z]*.py')} - {'batch', 'mixture', 'tfds_pairs'}
    modules = ['cpt_jax.tokenizer', 'cpt_jax.pretrained_tokenizer', 'cpt_jax.config', *(f'cpt_jax.data.{name}' for name in sorted(names))]
    code = f'import sys, importlib; [importlib.import_module(name) for name in {modules}]; sys.exit("jax" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0


def test_a_run_starts_without_the_libraries_of_the_oracles(tmp_path):
    """Nor do the packages that it needs bring them in where they are installed: that takes seconds."""
    code = f"""
import sys
from pathlib import Path
from cpt_jax.train import loop, setup
from cpt_jax.train.metrics import Recorder
Recorder(Path({str(tmp_path)!r}), 0, 1, writing=True).close()
sys.exit(', '.join({NEVER & {'torch', 'transformers', 'tensorflow'}} & sys.modules.keys()) or None)
"""
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('name', ['train', 'evaluate', 'embed', 'export', 'plan', 'demonstrations'])
def test_a_program_imports_jax_after_it_has_chosen_its_platform(name):
    """JAX reads JAX_PLATFORMS when it is imported; where libtpu is installed and no TPU is there, it would complain."""
    code = f'import sys, runpy; runpy.run_path("launch/{name}.py", run_name="imported"); sys.exit("jax" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
