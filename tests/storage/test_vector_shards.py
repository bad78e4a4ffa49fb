"""Directories of vectors: shards, resuming, and errors for wrong content."""

import dataclasses
import json

import fsspec
import numpy as np
import pytest

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.file_checksums import read_checksums
from cpt_jax.storage.vector_codes import compute_ranges, dequantize, unpack_signs
from cpt_jax.storage.vector_shards import VectorWriter, read_text_keys, read_vectors
from cpt_jax.storage.vectors_meta import VectorsMeta, load_meta, read_meta

META = VectorsMeta(
    model='run@20',
    settings={'dtype': 'float32', 'delimiters': {'x': ('[', ']')}, 'step': 20},
    side='y',
    input='corpus.jsonl',
    fingerprint='c0de',
    texts=10,
    width=4,
    shard_size=4,
)
IDS = [f'document {i}' for i in range(8)] + ['', 'Ü\u2028\r 9']


def make_unit_vectors(count: int = 10) -> np.ndarray:
    vectors_NxD = np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32)
    return vectors_NxD / np.linalg.norm(vectors_NxD, axis=1, keepdims=True)


def list_names(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def write_vectors(directory, batch_sizes: list[int], meta: VectorsMeta = META) -> None:
    """Writes the first texts in batches of these sizes."""
    writer = VectorWriter(directory, meta)
    start = 0
    for size in batch_sizes:
        writer.add(IDS[start : start + size], make_unit_vectors()[start : start + size])
        start += size


@pytest.mark.parametrize('batch_sizes', [[10], [1] * 10, [3, 6, 1], [0, 9, 0, 1]])
def test_batch_sizes_do_not_change_what_is_read(tmp_path, batch_sizes):
    directory = tmp_path / 'new' / 'vectors'
    write_vectors(directory, batch_sizes)
    shards = [f'{i:05d}-of-00003' for i in range(3)]
    assert list_names(directory) == sorted(
        [f'vectors-{i}.npy' for i in shards]
        + [f'ids-{i}.txt' for i in shards]
        + ['checksums.json', 'meta.json']
    )
    found = read_vectors(directory)
    assert [len(shard) for shard in found.shards] == [4, 4, 2] and isinstance(
        found.shards[0], np.memmap
    )
    np.testing.assert_array_equal(np.concatenate(found.shards), make_unit_vectors())
    assert found.ids == IDS
    assert dataclasses.asdict(found.meta) == json.loads(json.dumps(dataclasses.asdict(META)))
    np.testing.assert_array_equal(
        np.load(directory / 'vectors-00001-of-00003.npy'), make_unit_vectors()[4:8]
    )


def test_writer_resumes_with_the_missing_shards(tmp_path):
    write_vectors(tmp_path, [7])
    assert (tmp_path / 'vectors-00000-of-00003.npy').exists() and not (
        tmp_path / 'vectors-00001-of-00003.npy'
    ).exists()
    # A temporary file of a killed program.
    (tmp_path / 'vectors-00001-of-00003.npyq7.part').write_bytes(b'half')
    with pytest.raises(
        UserError,
        match='4 of 6 files are missing, vectors-00001-of-00003.npy first: start launch/embed.py '
        'again',
    ):
        read_vectors(tmp_path)
    # A different path of the same texts is accepted.
    writer = VectorWriter(tmp_path, dataclasses.replace(META, input='elsewhere/corpus.jsonl'))
    assert writer.missing == [1, 2] and not list(tmp_path.glob('*.part'))
    before = (tmp_path / 'vectors-00000-of-00003.npy').stat().st_mtime_ns
    writer.add(IDS[4:], make_unit_vectors()[4:])
    assert writer.missing == [] and VectorWriter(tmp_path, META).missing == []
    assert (tmp_path / 'vectors-00000-of-00003.npy').stat().st_mtime_ns == before
    np.testing.assert_array_equal(
        np.concatenate(read_vectors(tmp_path).shards), make_unit_vectors()
    )


@pytest.mark.parametrize(
    ('changes', 'differences'),
    [
        ({'model': 'other@20'}, 'model=run@20'),
        ({'settings': META.settings | {'step': 30}}, 'other settings'),
        ({'side': 'x'}, 'side=y'),
        ({'fingerprint': 'beef', 'texts': 11}, 'other fingerprint, other texts'),
        ({'width': 5}, 'other width'),
        ({'shard_size': 5}, 'shard_size=4'),
    ],
    ids=lambda value: None if isinstance(value, str) else '-'.join(value),
)
def test_directory_of_other_vectors_is_an_error(tmp_path, changes, differences):
    write_vectors(tmp_path, [10])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError) as error:
        VectorWriter(tmp_path, dataclasses.replace(META, **changes))
    assert (
        str(error.value)
        == f'{tmp_path}: holds other vectors ({differences}): choose another directory, or delete '
        f'it'
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_vectors_without_readable_metadata_are_an_error(tmp_path):
    write_vectors(tmp_path, [10])
    (tmp_path / 'meta.json').unlink()
    for open_directory in (lambda: VectorWriter(tmp_path, META), lambda: read_vectors(tmp_path)):
        with pytest.raises(UserError, match='meta.json'):
            open_directory()
    (tmp_path / 'meta.json').write_text('{"model": "m"}')
    with pytest.raises(UserError, match=r'meta.json: cannot be read'):
        read_vectors(tmp_path)


def test_file_at_the_path_of_the_directory_is_an_error(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match='file: cannot be made'):
        VectorWriter(tmp_path / 'file', META)


@pytest.mark.parametrize('value', [np.nan, np.inf, 0.0, 1.1])
def test_vector_that_is_not_of_unit_length_is_not_written(tmp_path, value):
    vectors_NxD = make_unit_vectors()
    vectors_NxD[6] *= value
    with pytest.raises(
        UserError, match='--model run@20: 1 of 10 vectors are not finite or not of unit length'
    ):
        VectorWriter(tmp_path, META).add(IDS, vectors_NxD)
    assert list_names(tmp_path) == ['meta.json']


def test_ids_that_do_not_match_the_vectors_are_an_error(tmp_path):
    write_vectors(tmp_path, [10])
    (tmp_path / 'checksums.json').unlink()  # as in directories of earlier versions
    (tmp_path / 'ids-00002-of-00003.txt').write_text('one\n')
    with pytest.raises(
        UserError, match=r'vectors-00002-of-00003.npy: holds float32\[2, 4\], not float32 \[1, 4\]'
    ):
        read_vectors(tmp_path)


def damage_file(path, kind: str) -> None:
    """Truncates a file, flips one of its bits or removes it."""
    content = path.read_bytes()
    if kind == 'removed':
        path.unlink()
        return
    flipped = content[:-3] + bytes([content[-3] ^ 4]) + content[-2:]
    path.write_bytes({'truncated': content[:-5], 'empty': b'', 'flipped': flipped}[kind])


@pytest.mark.parametrize('has_checksums', [True, False])
@pytest.mark.parametrize('name', ['vectors-00001-of-00003.npy', 'ids-00001-of-00003.txt'])
@pytest.mark.parametrize('kind', ['truncated', 'empty', 'flipped', 'removed'])
def test_damaged_shard_is_an_error_and_is_written_again(
    tmp_path, caplog, kind, name, has_checksums
):
    """Without checksums, as in directories of earlier versions, only lost bytes are noticed."""
    write_vectors(tmp_path, [10])
    if not has_checksums:
        (tmp_path / 'checksums.json').unlink()
    damage_file(tmp_path / name, kind)
    if kind == 'flipped' and not has_checksums:
        assert VectorWriter(tmp_path, META).missing == []
        return
    with pytest.raises(UserError, match='start launch/embed.py again') as error:
        read_vectors(tmp_path)
    assert '\n' not in str(error.value) and '00001-of-00003' in str(error.value)
    writer = VectorWriter(tmp_path, META)
    assert writer.missing == [1]
    assert ('shard 1 is embedded again' in caplog.text) == (kind != 'removed')
    writer.add(IDS[4:8], make_unit_vectors()[4:8])
    assert read_vectors(tmp_path).ids == IDS and VectorWriter(tmp_path, META).missing == []


def test_without_verification_only_sizes_and_ids_are_checked(tmp_path):
    write_vectors(tmp_path, [10])
    damage_file(tmp_path / 'vectors-00001-of-00003.npy', 'flipped')
    assert read_vectors(tmp_path, verify=False).ids == IDS
    damage_file(tmp_path / 'ids-00001-of-00003.txt', 'flipped')
    with pytest.raises(UserError, match='ids-00001-of-00003.txt: is damaged'):
        read_vectors(tmp_path, verify=False)


def test_unreadable_checksums_are_a_warning(tmp_path, caplog):
    write_vectors(tmp_path, [10])
    (tmp_path / 'checksums.json').write_text('{"vectors')
    assert read_vectors(tmp_path).ids == IDS
    assert 'checksums.json cannot be read' in caplog.text


def test_binary_codes_are_signs(tmp_path):
    meta = dataclasses.replace(META, precision='binary')
    write_vectors(tmp_path, [3, 7], meta)
    found = read_vectors(tmp_path)
    codes = np.concatenate(found.shards)
    assert codes.dtype == np.int8 and codes.shape == (10, 1) and found.ranges_2xD is None
    np.testing.assert_array_equal(unpack_signs(codes, 4), make_unit_vectors() > 0)
    assert VectorWriter(tmp_path, meta).missing == []


def test_int8_codes_have_the_ranges_that_were_set(tmp_path):
    meta = dataclasses.replace(META, precision='int8', calibration='all texts')
    vectors_NxD = make_unit_vectors()
    writer = VectorWriter(tmp_path, meta)
    assert writer.needs_ranges
    writer.set_ranges(compute_ranges(vectors_NxD))
    writer.add(IDS[:4], vectors_NxD[:4])

    # A killed program goes on with the same ranges.
    writer = VectorWriter(tmp_path, meta)
    assert not writer.needs_ranges and writer.missing == [1, 2]
    writer.add(IDS[4:], vectors_NxD[4:])
    found = read_vectors(tmp_path)
    assert found.meta.calibration == 'all texts'
    np.testing.assert_array_equal(found.ranges_2xD, compute_ranges(vectors_NxD))
    # The error of a code is less than its step.
    decoded_NxD = dequantize(np.concatenate(found.shards), found.ranges_2xD)
    step_D = np.ptp(vectors_NxD, axis=0) / 255
    assert (np.abs(decoded_NxD - vectors_NxD) < step_D * 1.001).all()

    # Without its ranges, no code means anything: all are written again.
    (tmp_path / 'ranges.npy').write_bytes(b'damaged')
    with pytest.raises(UserError, match=r'ranges.npy: is missing or damaged'):
        read_vectors(tmp_path)
    assert VectorWriter(tmp_path, meta).needs_ranges


def test_vectors_of_another_precision_are_refused(tmp_path):
    write_vectors(tmp_path, [10])
    with pytest.raises(UserError, match=r'holds other vectors \(precision=float32'):
        VectorWriter(tmp_path, dataclasses.replace(META, precision='binary'))


def test_damaged_text_keys_are_refused_and_written_again(tmp_path):
    writer = VectorWriter(tmp_path, META)
    writer.write_text_keys(range(10))
    writer.add(IDS, make_unit_vectors())
    path = tmp_path / 'text_keys.npy'
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b'\1')
    with pytest.raises(UserError, match='text_keys.npy: is damaged .*: start launch/embed.py aga'):
        read_text_keys(tmp_path, META)
    writer = VectorWriter(tmp_path, META)
    assert not writer.missing
    writer.write_text_keys(range(10))
    assert path.read_bytes() == content
    writer.write_text_keys(iter([]))  # not read, because the file is whole
    assert read_text_keys(tmp_path, META).tolist() == [*range(10)]


def test_new_ranges_keep_the_checksum_of_the_text_keys(tmp_path):
    meta = dataclasses.replace(META, precision='int8')
    writer = VectorWriter(tmp_path, meta)
    writer.write_text_keys(range(10))
    writer.set_ranges(compute_ranges(make_unit_vectors()))
    assert read_checksums(tmp_path).keys() == {'text_keys.npy', 'ranges.npy'}


def test_directory_without_the_weights_is_completed_and_other_weights_are_refused(tmp_path):
    write_vectors(tmp_path, [4])
    new = dataclasses.replace(META, settings=META.settings | {'weights': '1'})
    assert VectorWriter(tmp_path, new).missing == [1, 2]
    other = dataclasses.replace(META, settings=META.settings | {'weights': '2'})
    with pytest.raises(UserError, match='holds other vectors .other settings.: choose another'):
        VectorWriter(tmp_path, other)


def test_metadata_in_a_bucket_are_read_without_the_vectors(tmp_path, cache):
    store = fsspec.filesystem('memory')
    write_vectors(tmp_path / 'vectors', [10])
    for path in (tmp_path / 'vectors').iterdir():
        store.pipe(f'/bucket/vectors/{path.name}', path.read_bytes())
    try:
        assert read_meta('memory://bucket/vectors') == load_meta(tmp_path / 'vectors')
    finally:
        store.rm('/bucket', recursive=True)
    assert [*cache.rglob('meta.json')] and not [*cache.rglob('*.npy')]
