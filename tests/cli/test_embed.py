"""launch/embed.py as a user runs it: killed and restarted, as two processes, with wrong input."""

import json
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from cpt_jax.data.pairs import compute_text_key
from cpt_jax.embed.load import load_embedder
from cpt_jax.storage.vector_codes import compute_ranges, dequantize
from cpt_jax.storage.vector_shards import read_text_keys, read_vectors
from tests.conftest import sentences
from tests.embed.test_embedder import write_run
from tests.programs import Program, finish, run_program, start_program

# As many as one device reads in two windows.
TEXTS = [*sentences(4995, seed=3), '', ' ', 'list ' * 500, 'x' * 3000, 'Ünïcödé \U0001f389']


@pytest.fixture(scope='module')
def folder(tmp_path_factory, tokenizer) -> Path:
    """A folder with a run, and a corpus in BEIR's format with TEXTS."""
    folder = tmp_path_factory.mktemp('embed')
    write_run(folder / 'run', tokenizer)
    rows = [
        {'_id': f'd{i}', 'title': text[: i % 7], 'text': text[i % 7 :].removeprefix(' ')}
        for i, text in enumerate(TEXTS)
    ]
    (folder / 'corpus.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return folder


def start(folder: Path, output: str, *flags: str, devices: int = 1) -> Program:
    given = '--model=run', '--input=corpus.jsonl', f'--output={output}'
    return start_program('embed', *given, *flags, cwd=folder, devices=devices)


@pytest.fixture(scope='module')
def expected(folder) -> np.ndarray:
    """Vectors of the corpus from eight devices, float32 [5000, D]."""
    rows = [json.loads(line) for line in (folder / 'corpus.jsonl').read_text().splitlines()]
    return load_embedder(str(folder / 'run'))(
        [f'{row["title"]} {row["text"]}'.strip() for row in rows], 'y'
    )


def check(directory: Path, expected: np.ndarray) -> None:
    found = read_vectors(directory)
    assert found.ids == [f'd{i}' for i in range(5000)] and found.meta.model == 'run@200'
    np.testing.assert_allclose(np.concatenate(found.shards), expected, atol=1e-5)
    keys = read_text_keys(directory, found.meta)
    assert keys[[0, 4996, 4998]].tolist() == [compute_text_key(TEXTS[i]) for i in (0, 4996, 4998)]


def test_missing_shards_are_computed_after_a_kill(folder, expected):
    process = start(folder, 'killed', '--shard_size=300')
    deadline = time.time() + 100
    while not list((folder / 'killed').glob('vectors-*.npy')):
        assert process.poll() is None and time.time() < deadline, process.communicate()[0]
        time.sleep(0.001)
    process.kill()
    process.wait()
    written = {path: path.stat().st_mtime_ns for path in (folder / 'killed').glob('vectors-*.npy')}
    assert 1 <= len(written) < 17

    output = finish(start(folder, 'killed', '--shard_size=300'))
    assert (
        f'{300 * len(written):,} of 5,000 texts had their vectors from an earlier start' in output
    )
    assert f'{5000 - 300 * len(written):,} texts in ' in output
    assert all(word in output for word in ('texts/s', 'tokens/s', 'padding'))
    assert {path: path.stat().st_mtime_ns for path in written} == written
    check(folder / 'killed', expected)
    assert not list((folder / 'killed').glob('*.part'))


def test_two_processes_equal_one_and_only_the_first_writes(folder, expected):
    with socket.socket() as free:
        free.bind(('localhost', 0))
        address = f'--coordinator=localhost:{free.getsockname()[1]}'
    flags = '--shard_size=4000', address, '--processes=2'
    both = [
        start(folder, output, *flags, f'--process={i}', devices=2)
        for i, output in enumerate(['two', 'of_nobody'])
    ]
    first, second = map(finish, both)
    assert (
        '5,000 vectors of 32 dimensions in 2 files; written to two' in first
        and 'vectors' not in second
    )
    check(folder / 'two', expected)
    assert not (folder / 'of_nobody').exists()


def test_int8_codes_have_the_ranges_of_a_sample_of_all_texts_or_of_another_directory(
    folder, expected
):
    flags = '--precision=int8', '--calibration_texts=100', '--shard_size=3000'
    output = finish(start(folder, 'sampled', *flags))
    calibration = 'minimum and maximum of each dimension over 100 of 5,000 texts, evenly spaced'
    assert f'int8 codes, 32 bytes per text; calibration: {calibration}' in output
    sampled = read_vectors(folder / 'sampled')
    ranges_2xD = compute_ranges(expected[np.linspace(0, 4999, 100).astype(int)])
    np.testing.assert_allclose(sampled.ranges_2xD, ranges_2xD, atol=1e-5)
    decoded_NxD = dequantize(np.concatenate(sampled.shards), sampled.ranges_2xD)
    error_NxD = np.abs(decoded_NxD - np.clip(expected, *sampled.ranges_2xD))
    assert (error_NxD < 1.1 * np.ptp(ranges_2xD, axis=0) / 255).all()

    (folder / 'queries.txt').write_text('list\nfile\n')
    flags = '--precision=int8', '--input=queries.txt'
    finish(start(folder, 'queries', *flags))
    queries = read_vectors(folder / 'queries')
    assert queries.meta.calibration.endswith('over 2 texts')
    # Two values per dimension; rounding in float32 may put the larger one a step lower.
    assert {*np.unique(queries.shards[0]).tolist()} <= {-128, 126, 127}
    finish(start(folder, 'alike', *flags, '--ranges_from=sampled'))
    alike = read_vectors(folder / 'alike')
    np.testing.assert_array_equal(alike.ranges_2xD, sampled.ranges_2xD)
    assert alike.meta.calibration == f'ranges of corpus.jsonl: {calibration}'
    flags = *flags, '--ranges_from=sampled', '--dimensions=12'
    output = finish(start(folder, 'other', *flags), status=1)
    assert '--ranges_from sampled: holds int8 vectors of 32 dimensions, not int8 of 12' in output


def test_wrong_input_is_a_one_line_error(folder):
    (folder / 'broken.jsonl').write_text(
        '{"_id": "1", "text": "one"}\n{"_id": "2", "txt": "two"}\n'
    )
    line = (
        "error: broken.jsonl:2: no text in field 'text': name another with --field; fields with "
        "text are '_id', 'txt'\n"
    )
    assert finish(start(folder, 'none', '--input=broken.jsonl'), status=1) == line
    assert not (folder / 'none').exists()


def test_help_shows_example_and_flags(tmp_path):
    status, output, errors = run_program('embed', '--help', cwd=tmp_path)
    assert (status, errors) == (0, '')
    expected = [
        'python launch/embed.py --model',
        'Example',
        '--input:',
        '--output:',
        '--side:',
        '--field:',
        '--shard_size:',
    ]
    # Flags that all programs share.
    expected += ['--coordinator:', '--model:', '--representation:', '--demonstration:']
    assert all(word in output for word in expected)
