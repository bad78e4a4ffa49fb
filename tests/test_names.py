"""Tests that public names are unique in the package."""

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / 'cpt_jax'

# Names that several modules may define: the folder in which they may, and the reason.
SHARED = {
    'main': ('cli', 'every program has one'),
    'run': ('cli', 'every program has one, called by its console script'),
    'find_tasks': ('evals', 'every kind of task has one, called by the registry'),
}


def test_no_public_class_or_function_is_defined_twice():
    definitions = defaultdict(list)
    for path in sorted(PACKAGE.rglob('*.py')):
        if path.name == '__init__.py':  # the public API: wrappers named like what they call
            continue
        for node in ast.parse(path.read_text('utf-8')).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith('_'):
                definitions[node.name].append(path.relative_to(PACKAGE).as_posix())
    duplicates = {}
    for name, paths in definitions.items():
        folders = {path.split('/')[0] for path in paths}
        is_allowed = name in SHARED and folders == {SHARED[name][0]}
        if len(paths) > 1 and not is_allowed:
            duplicates[name] = paths
    assert not duplicates
