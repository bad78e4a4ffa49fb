"""The public functions of cpt_jax; the examples in their docstrings are run in order."""

import contextlib
import doctest
import json
import shutil
from pathlib import Path

import pytest

import cpt_jax
import cpt_jax.training.step
from cpt_jax.runtime.errors import UserError
from tests.conftest import sentences

BENCHMARK = Path(__file__).parent / 'fixtures' / 'old_runs' / 'data' / 'senteval'


class LastLines(doctest.OutputChecker):
    """Compares an example with the end of its output, because training also prints progress."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return got.endswith(want)


def test_functions_and_folders_have_different_names():
    """`cpt_jax.train` is the function, even after a module in training/ was imported."""
    assert callable(cpt_jax.train) and cpt_jax.training.step.make_step
    names = {path.name for path in Path(cpt_jax.__file__).parent.iterdir() if path.is_dir()}
    assert not names & {*cpt_jax.__all__}


def test_workdir_in_another_store_is_an_error():
    with pytest.raises(UserError, match='workdir s3:/+bucket/run: only paths of the file system'):
        cpt_jax.train({}, 's3://bucket/run')


def test_docstring_examples_run(tmp_path):
    texts = sentences(200)
    rows = [
        {'x': text, 'y': f'def {"_".join(text.split())}(): {i}'} for i, text in enumerate(texts)
    ]
    (tmp_path / 'pairs.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    shutil.copytree(BENCHMARK, tmp_path / 'data' / 'senteval')
    runner, finder = doctest.DocTestRunner(LastLines()), doctest.DocTestFinder(recurse=False)
    with contextlib.chdir(tmp_path):
        for name in ('train', 'load_embedder', 'evaluate', 'export'):
            (example,) = finder.find(getattr(cpt_jax, name), name, globs=vars(cpt_jax).copy())
            assert example.examples and runner.run(example).failed == 0, name
