"""launch/export.py as a user runs it."""

import json
import shutil
import socket
from pathlib import Path

import pytest

from tests.embed.test_embedder import write_run
from tests.programs import finish, run_program, start_program

# Several shards, of several tensors each.
SHARDED = '--model=shared', '--dtype=bfloat16', '--license=mit', '--shard_gb=1e-5'


@pytest.fixture(scope='module')
def folder(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp('programs')
    write_run(folder / 'shared', tokenizer.with_closing('shared'), causal=True)
    write_run(folder / 'own', tokenizer, causal=True)
    return folder


@pytest.fixture(scope='module')
def exported(folder) -> Path:
    """The directory of an export by one process with two devices."""
    program = start_program(
        'export', *SHARDED, '--output=deep/e[r]/one', cwd=folder, devices=2, split_errors=True
    )
    output, errors = program.communicate(timeout=200)
    assert (program.returncode, errors) == (0, ''), errors
    assert (
        'deep/e[r]/one: query and document, at most 40 tokens; vectors after a reload differ'
        in output
    )
    return folder / 'deep/e[r]/one'


def test_run_is_exported_and_checked(folder, exported):
    assert 'license: mit' in (exported / 'README.md').read_text()
    status, output, _ = run_program('export', '--check=deep/e[r]/one', cwd=folder)
    assert status == 0 and output.count('good') == 9
    shutil.copytree(exported, folder / 'e[r]')
    pooling = folder / 'e[r]/1_Pooling/config.json'
    pooling.write_text(pooling.read_text().replace('true', 'false'))
    status, output, errors = run_program('export', '--check=e[r]', cwd=folder)
    assert (
        status == 1
        and 'exactly one pooling_mode_... must be true (breaks: ST, TEI, vLLM)' in output
    )
    # The other defect: without pooling, cpt_jax cannot load it either.
    assert errors == 'error: --check e[r]: 2 defects, listed above, would break a reader\n'


def start_two(folder: Path, *flags: str, second: Path) -> list:
    """Starts an export by two processes with one device each; the second one in `second`."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        address = f'--coordinator=localhost:{free.getsockname()[1]}'
    shared = *SHARDED, *flags, address, '--processes=2'
    return [
        start_program('export', *shared, f'--process={i}', cwd=cwd)
        for i, cwd in enumerate([folder, second])
    ]


def read_files(directory: Path) -> dict[Path, bytes]:
    files = (path for path in directory.rglob('*') if path.is_file())
    return {path.relative_to(directory): path.read_bytes() for path in files}


def test_two_processes_write_the_bytes_of_one(folder, exported):
    first, second = map(finish, start_two(folder, '--output=two/one', second=folder))
    assert 'model card: two/one/README.md' in first and 'two/one' not in second
    assert read_files(folder / 'two/one') == read_files(exported)
    assert len([*exported.glob('model-*.safetensors')]) > 3
    assert [path.name for path in (folder / 'two').iterdir()] == ['one']


def test_output_that_one_process_does_not_see_is_one_line(folder):
    """The second process has another current directory, as on a disk that is not shared."""
    (folder / 'elsewhere').mkdir()
    shutil.copytree(folder / 'shared', folder / 'elsewhere/shared')
    processes = start_two(folder, '--output=unseen/one', second=folder / 'elsewhere')
    for process in processes:
        output = finish(process, status=1)
        assert '--output unseen/one: process 1 does not see the folder that process 0' in output
        assert 'Traceback' not in output
    assert [*(folder / 'unseen').iterdir()] == []


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
            ['--model=shared', '--output=x', '--adapter', '--processes=2', '--process=0'],
            '--processes: --adapter and --check run on one process: remove the flag',
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
