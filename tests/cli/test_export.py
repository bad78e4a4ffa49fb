"""launch/export.py as a user runs it."""

import json
from pathlib import Path

import pytest

from tests.embed.test_embedder import write_run
from tests.programs import run_program


@pytest.fixture(scope='module')
def folder(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp('programs')
    write_run(folder / 'shared', tokenizer.closed('shared'), causal=True)
    write_run(folder / 'own', tokenizer, causal=True)
    return folder


def test_a_run_is_written_and_checked(folder):
    flags = '--model=shared', '--output=deep/er/one', '--dtype=bfloat16', '--license=mit'
    status, said, errors = run_program('export', *flags, cwd=folder)
    assert (status, errors) == (0, ''), errors
    assert 'deep/er/one: query and document, at most 40 tokens; a reload differs by' in said
    assert 'license: mit' in (folder / 'deep/er/one/README.md').read_text()
    status, said, _ = run_program('export', '--check=deep/er/one', cwd=folder)
    assert status == 0 and said.count('good') == 9
    pooling = folder / 'deep/er/one/1_Pooling/config.json'
    pooling.write_text(pooling.read_text().replace('true', 'false'))
    status, said, errors = run_program('export', '--check=deep/er/one', cwd=folder)
    assert (
        status == 1 and 'exactly one pooling_mode_... must be true (breaks: ST, TEI, vLLM)' in said
    )
    # No pooling, and so no model to us.
    assert errors == 'error: --check deep/er/one: something would break: 2 lines above\n'


def test_a_run_with_two_closings_is_two_directories(folder):
    status, said, errors = run_program('export', '--model=own@100', '--output=two', cwd=folder)
    assert (status, errors) == (0, ''), errors
    assert (
        'two/query: query, at most 24 tokens' in said
        and 'two/document: document, at most 40 tokens' in said
    )
    assert json.loads((folder / 'two/query/parity.json').read_text())['model'] == 'own@100'
    status, said, _ = run_program('export', '--check=two', cwd=folder)
    assert status == 0 and said.count('good') == 18


@pytest.mark.parametrize(
    ('flags', 'line'),
    [
        ([], 'give --model and --output to write a directory, or --check to check one'),
        (['--model=shared'], '--model and --output go together'),
        (
            ['--check=x', '--model=shared'],
            'give --model and --output to write a directory, or --check to check one',
        ),
        (
            ['--check=nowhere'],
            '--check nowhere: no config.json there; give the directory of a model',
        ),
        (['--model=nowhere', '--output=x'], '--model nowhere: no run with a checkpoint'),
        (
            ['--model=shared', '--output=own'],
            '--output own: is there already; remove it, or give another',
        ),
        (
            ['--model=shared', '--output=x', '--dtype=int8'],
            'flag --dtype=int8: value should be one of <float32|bfloat16|float16>',
        ),
    ],
)
def test_mistakes(folder, flags, line):
    status, said, errors = run_program('export', *flags, cwd=folder)
    assert (
        status == 1
        and said == ''
        and errors.startswith(f'error: {line}')
        and errors.count('\n') == 1
    )
