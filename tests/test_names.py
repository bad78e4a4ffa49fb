"""A public name means one thing in the whole package."""

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / 'cpt_jax'

# Names that several modules define on purpose: the folder in which they may, and the reason.
SHARED = {
    'main': ('cli', 'every program has one'),
    'run': ('cli', 'every program has one, which its console script calls'),
    'find_tasks': ('evals', 'every kind of task has one, which the registry calls'),
}


def folder_of(name: str) -> str | None:
    return SHARED[name][0] if name in SHARED else None


def test_no_public_class_or_function_is_defined_twice():
    places = defaultdict(list)
    for path in sorted(PACKAGE.rglob('*.py')):
        if path.name == '__init__.py':  # the public API, which calls what it is named after
            continue
        for node in ast.parse(path.read_text('utf-8')).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith('_'):
                places[node.name].append(path.relative_to(PACKAGE).as_posix())
    twice = {
        name: paths
        for name, paths in places.items()
        if len(paths) > 1 and {path.split('/')[0] for path in paths} != {folder_of(name)}
    }
    assert not twice
