"""launch/export.py as a user runs it."""

import json
from pathlib import Path

import pytest

from tests.embed.test_embedder import write_run
from tests.programs import run_program


@pytest.fixture(scope='module')
def folder(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp('programs')
    write_run(folder / 'shared', tokenizer.with_closing('shared'), causal=True)
    write_run(folder / 'own', tokenizer, causal=True)
    return folder


def test_run_is_exported_and_checked(folder):
    flags = '--model=shared', '--output=deep/e[r]/one', '--dtype=bfloat16', '--license=mit'
    status, output, errors = run_program('export', *flags, cwd=folder)
    assert (status, errors) == (0, ''), errors
    assert (
        'deep/e[r]/one: query and document, at most 40 tokens; vectors after a reload differ'
        in output
    )
    assert 'license: mit' in (folder / 'deep/e[r]/one/README.md').read_text()
    status, output, _ = run_program('export', '--check=deep/e[r]/one', cwd=folder)
    assert status == 0 and output.count('good') == 9
    pooling = folder / 'deep/e[r]/one/1_Pooling/config.json'
    pooling.write_text(pooling.read_text().replace('true', 'false'))
    status, output, errors = run_program('export', '--check=deep/e[r]/one', cwd=folder)
    assert (
        status == 1
        and 'exactly one pooling_mode_... must be true (breaks: ST, TEI, vLLM)' in output
    )
    # The other defect: without pooling, cpt_jax cannot load it either.
    line = 'error: --check deep/e[r]/one: 2 defects, listed above, would break a reader\n'
    assert errors == line


def test_run_with_a_closing_token_per_side_is_two_directories(folder):
    status, output, errors = run_program('export', '--model=own@100', '--output=t[w]o', cwd=folder)
    assert (status, errors) == (0, ''), errors
    assert (
        't[w]o/query: query, at most 24 tokens' in output
        and 't[w]o/document: document, at most 40 tokens' in output
    )
    assert json.loads((folder / 't[w]o/query/parity.json').read_text())['model'] == 'own@100'
    status, output, _ = run_program('export', '--check=t[w]o', cwd=folder)
    assert status == 0 and output.count('good') == 18


@pytest.mark.parametrize(
    ('flags', 'line'),
    [
        ([], 'give --model and --output to write a directory, or --check to check one'),
        (['--model=shared'], 'give both --model and --output'),
        (
            ['--check=x', '--model=shared'],
            'give --model and --output to write a directory, or --check to check one',
        ),
        (
            ['--check=nowhere'],
            '--check nowhere: has no config.json: give the directory of a model',
        ),
        (['--model=nowhere', '--output=x'], '--model nowhere: no run with a checkpoint'),
        (
            ['--model=shared', '--output=own'],
            '--output own: already exists: remove it, or give another',
        ),
        (
            ['--model=shared', '--output=x', '--dtype=int8'],
            'flag --dtype=int8: value should be one of <float32|bfloat16|float16>',
        ),
    ],
)
def test_wrong_flags_are_one_line_errors(folder, flags, line):
    status, output, errors = run_program('export', *flags, cwd=folder)
    assert (
        status == 1
        and output == ''
        and errors.startswith(f'error: {line}')
        and errors.count('\n') == 1
    )
