"""Paths with characters that have a meaning in patterns, URLs or shells, and places that cannot be
used: they work, or are an error of one line.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

import cpt_jax
from cpt_jax.cli.program import use_compilation_cache
from cpt_jax.data.files import find_input_files
from cpt_jax.data.sources.jsonl import JsonlSource
from cpt_jax.embed.load import load_embedder
from cpt_jax.evals.registry import fetch_data_dir, find_tasks
from cpt_jax.exporting.output import atomic_directory, check_can_export
from cpt_jax.origin.resolve import resolve_model
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.cache import get_cache_folder, load_or_build
from cpt_jax.storage.vector_shards import VectorWriter, read_vectors
from cpt_jax.storage.writable import check_writable
from cpt_jax.text.corpus import Corpus
from tests.programs import ROOT, run_program
from tests.storage.test_vector_shards import IDS, META, make_unit_vectors

OLD_RUNS = ROOT / 'tests' / 'fixtures' / 'old_runs'
NAMES = (
    'a[1]b', '[abc]', 'a*b', 'what?', '{0}', "it's", 'say "hi"', 'with space', 'ö œ', '50%20', '#1',
    'a:b', 'x=1,y=2', 'a@5', '$HOME', '~tilde', '-dash',
)  # fmt: skip


@pytest.fixture(params=NAMES)
def folder(request, tmp_path, monkeypatch) -> Path:
    """A folder with an awkward name; the cache has one too."""
    monkeypatch.setenv('CPT_JAX_CACHE', str(tmp_path / request.param / 'cache'))
    path = tmp_path / request.param
    path.mkdir()
    return path


def test_awkward_paths_are_read_and_written(folder, monkeypatch):
    data = folder / 'data'
    shutil.copytree(OLD_RUNS / 'data', data)
    pairs = JsonlSource(str(OLD_RUNS / 'data' / 'pairs.jsonl'), 'all')
    file = folder / f'{folder.name}.jsonl'
    shutil.copy(data / 'pairs.jsonl', file)
    for path in (file, folder / '*.jsonl', data / '*.jsonl', folder / 'd*' / 'pairs.jsonl'):
        assert len(JsonlSource(str(path), 'all')) == len(pairs), path
    assert JsonlSource(str(file), 'all').fingerprint == pairs.fingerprint
    assert len(find_input_files(str(data / 'text'), ('.txt',))) == 3
    assert len(Corpus(epath.Path(file), 'x')) == len(pairs)

    assert fetch_data_dir(str(data), ['*']) == str(data)
    found = find_tasks(str(data))
    expected = find_tasks(str(OLD_RUNS / 'data'))
    assert found.keys() == expected.keys() and 'retrieval/tiny' in found
    for name in ('retrieval/tiny', 'sts/STSBenchmark'):
        found[name].check()
        assert found[name].fingerprint() == expected[name].fingerprint()

    VectorWriter(folder / 'vectors', META).add(IDS, make_unit_vectors())
    assert read_vectors(folder / 'vectors').ids == IDS
    check_can_export(folder / 'export')
    with atomic_directory(folder / 'export') as temporary:
        (temporary / 'a').touch()
    assert (folder / 'export' / 'a').exists()

    model = folder / 'bert_model'
    shutil.copytree(OLD_RUNS / 'bert_model', model)
    assert resolve_model(str(model), '--model').directory == model
    monkeypatch.chdir(folder.parent)
    assert resolve_model(f'{folder.name}/bert_model', '--model').directory == model


def test_code_search_file_with_brackets_has_the_fingerprint_of_its_content(tmp_path):
    home = tmp_path / 'codesearch'
    home.mkdir()
    prints = []
    for text in ('one', 'two'):
        (home / 'go[1].jsonl').write_text(json.dumps({'docstring': text, 'code': text}) + '\n')
        prints.append(find_tasks(str(tmp_path))['codesearch/go[1]'].fingerprint())
    assert prints[0] != prints[1]


def test_home_in_the_cache_variable_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('CPT_JAX_CACHE', '~/my cache')
    assert get_cache_folder() == tmp_path / 'my cache'


@pytest.fixture
def nobody(monkeypatch):
    """No $HOME and a user without an entry in the list of users, as in some containers."""

    def fail(user):
        raise KeyError(user)

    monkeypatch.delenv('HOME', raising=False)
    monkeypatch.setattr('pwd.getpwuid', fail)
    monkeypatch.setattr('pwd.getpwnam', fail)


def test_unknown_home_is_one_line(nobody, monkeypatch):
    monkeypatch.delenv('CPT_JAX_CACHE')
    with pytest.raises(UserError, match='home directory of this user is unknown: set CPT_JAX_CAC'):
        load_or_build('name', lambda: {'a': np.arange(3)})
    with pytest.raises(UserError, match='home directory of this user is unknown'):
        JsonlSource(str(OLD_RUNS / 'data' / 'pairs.jsonl'), 'all')
    with pytest.raises(UserError, match='path ~/data: the home directory is unknown'):
        find_input_files('~/data', ('.txt',))
    with pytest.raises(UserError, match='--data_dir ~/data: the home directory is unknown'):
        fetch_data_dir('~/data', ['*'])


def test_program_without_a_home_is_one_line(tmp_path):
    """The user has no entry in the list of users either, if this process may choose one."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ('HOME', 'CPT_JAX_CACHE')
    }
    code = (
        "import pwd, runpy, sys; pwd.getpwuid = {}.__getitem__; sys.argv = ['embed', '--model=x', "
        "'--input=x', '--output=x']; runpy.run_path(sys.path.pop(0) + '/launch/embed.py', "
        "run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, '-c', f'import sys; sys.path.insert(0, {str(ROOT)!r}); {code}'],
        env=environment | {'PYTHONPATH': str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1
    assert done.stderr == (
        'error: the cache folder ~/.cache/cpt_jax: the home directory of this user is unknown: set '
        'CPT_JAX_CACHE to a folder that can be written\n'
    )


def test_file_as_the_cache_folder_is_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('CPT_JAX_CACHE', str(tmp_path / 'file'))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update('jax_compilation_cache_dir', None)
    try:
        use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update('jax_compilation_cache_dir', before)
    assert 'set CPT_JAX_CACHE to a folder that can be written' in caplog.text
    caplog.clear()
    assert len(JsonlSource(str(OLD_RUNS / 'data' / 'pairs.jsonl'), 'all')) > 10
    assert len(caplog.messages) == 1 and 'cannot be written' in caplog.text


UNREADABLE = {
    'folder as a file': ('.', 'is not a file, not a folder with'),
    'too long': ('x' * 300, 'cannot be read: File name too long'),
    'below a file': ('file/x', 'is not a file'),
}


@pytest.mark.parametrize('kind', UNREADABLE)
def test_unusable_data_path_is_one_line(tmp_path, kind):
    (tmp_path / 'file').touch()
    name, expected = UNREADABLE[kind]
    with pytest.raises(UserError, match=expected):
        JsonlSource(str(tmp_path / name), 'all')


@pytest.mark.parametrize('name', ['file', 'file/below', 'x' * 300])
def test_unusable_output_is_one_line_before_any_work(tmp_path, name):
    """The model does not exist either, but that would be noticed later."""
    (tmp_path / 'file').touch()
    output = tmp_path / name
    for write in (
        lambda: check_writable(output, '--output'),
        lambda: VectorWriter(output, META),
        lambda: cpt_jax.export('nowhere', output / 'below'),
    ):
        with pytest.raises(UserError) as error:
            write()
        assert '\n' not in str(error.value) and name in str(error.value)


def test_unusable_output_of_an_evaluation_is_one_line(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match='^--output .*file: cannot be written .*Not a directory'):
        cpt_jax.evaluate(
            str(OLD_RUNS / 'bert_model'), 'retrieval/tiny', OLD_RUNS / 'data', tmp_path / 'file'
        )


def test_folder_as_the_input_is_one_line(tmp_path):
    (tmp_path / 'corpus.txt').mkdir()
    with pytest.raises(UserError, match='corpus.txt: cannot be read: Is a directory$'):
        Corpus(epath.Path(tmp_path / 'corpus.txt'))


def test_program_checks_its_output_first(tmp_path):
    (tmp_path / 'file').touch()
    flags = '--model=none', '--input=none', '--output=file/x'
    status, _, errors = run_program('embed', *flags, cwd=tmp_path)
    assert status == 1 and errors.startswith('error: --output file/x: cannot be written')


def test_program_with_awkward_paths_in_all_flags(tmp_path):
    place = tmp_path / "a[1] *?{0}'ö"
    place.mkdir()
    shutil.copytree(OLD_RUNS / 'bert_model', place / 'model[2]')
    (place / 'in[3].jsonl').write_text('{"_id": "1", "text": "one"}\n')
    flags = (
        f'--model={place}/model[2]',
        f'--input={place}/in[3].jsonl',
        f'--output={place}/out[4]',
    )
    status, output, errors = run_program('embed', *flags, cwd=tmp_path)
    assert status == 0, errors
    found = read_vectors(place / 'out[4]')
    assert found.ids == ['1'] and found.meta.input == f'{place}/in[3].jsonl'
    assert dataclasses.asdict(found.meta)['texts'] == 1
    expected = load_embedder(str(OLD_RUNS / 'bert_model'))(['one'], 'y')
    np.testing.assert_allclose(found.shards[0], expected, atol=1e-6)
