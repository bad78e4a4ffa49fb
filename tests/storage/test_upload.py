"""Outputs in an emulated bucket."""

import json
import threading

import fsspec
import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from cpt_jax.exporting.output import atomic_directory, check_can_export, open_export_folder
from cpt_jax.exporting.weight_shards import take_own_shards
from cpt_jax.runtime import multihost
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.cache import get_cache_folder
from cpt_jax.storage.paths import make_path
from cpt_jax.storage.vector_shards import VectorWriter, read_vectors
from tests.storage.test_vector_shards import IDS, META, make_unit_vectors, write_vectors


@pytest.mark.parametrize('name', ['vectors', 'v[1] ö'])
def test_vectors_are_written_to_a_bucket_and_continued(emulator, name):
    directory = make_path(f'gs://bucket/{name}', '--output')
    write_vectors(directory, [7])
    with pytest.raises(UserError, match='4 of 6 files are missing'):
        read_vectors(f'gs://bucket/{name}')
    writer = VectorWriter(directory, META)
    assert writer.missing == [1, 2]
    writer.add(IDS[4:], make_unit_vectors()[4:])
    assert VectorWriter(directory, META).missing == []
    found = read_vectors(f'gs://bucket/{name}')
    assert found.ids == IDS
    np.testing.assert_array_equal(np.concatenate(found.shards), make_unit_vectors())
    # An object that was replaced counts as missing, whatever its size.
    ids = f'bucket/{name}/ids-00000-of-00003.txt'
    emulator.pipe(ids, emulator.cat_file(ids)[::-1])
    emulator.pipe(f'bucket/{name}/vectors-00001-of-00003.npy', b'short')
    assert VectorWriter(directory, META).missing == [0, 1]
    # Directories of earlier versions have no CRC-32C.
    stored = json.loads((directory / 'checksums.json').read_text())
    earlier = {key: [*row[:2], ''] for key, row in stored.items()}
    (directory / 'checksums.json').write_text(json.dumps(earlier))
    assert VectorWriter(directory, META).missing == [1]


def test_export_is_uploaded_when_it_is_complete(emulator, tmp_path):
    output = make_path('gs://bucket/exports/one', '--output')
    check_can_export(output)
    with pytest.raises(KeyboardInterrupt), atomic_directory(output) as folder:
        (folder / 'config.json').write_text('{}')
        raise KeyboardInterrupt
    assert not output.exists()
    with atomic_directory(output) as folder:
        (folder / 'config.json').write_text('{}')
        (folder / '1_Pooling').mkdir()
        (folder / '1_Pooling' / 'config.json').write_text('{"a": 1}')
    assert {name: emulator.cat(name) for name in emulator.find('bucket/exports')} == {
        'bucket/exports/one/config.json': b'{}',
        'bucket/exports/one/1_Pooling/config.json': b'{"a": 1}',
    }
    assert not [*get_cache_folder().glob('export-*')]
    with pytest.raises(UserError, match='--output gs://bucket/exports/one: already exists'):
        check_can_export(make_path('gs://bucket/exports/one', '--output'))


def test_processes_exchange_weights_over_a_bucket(emulator, monkeypatch):
    """Two threads stand for two processes."""
    output = make_path('gs://bucket/exports/two', '--output')
    barrier = threading.Barrier(2, timeout=60)
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(jax, 'process_index', lambda: int(threading.current_thread().name))
    monkeypatch.setattr(multihost_utils, 'sync_global_devices', lambda name: barrier.wait())

    def export() -> None:
        with open_export_folder(output) as folder:
            assert folder.writes_files
            weights = [folder.path / f'model-{i}.safetensors' for i in range(3)]
            for path in take_own_shards(weights):
                path.write_text(path.name)
            folder.share_weights(weights)
            (folder.path / 'config.json').write_text(str(jax.process_index()))
            assert [path.read_text() for path in weights] == [path.name for path in weights]

    threads = [threading.Thread(target=export, name=str(i)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name.rpartition('/')[2]: emulator.cat(name) for name in emulator.find('bucket')} == {
        'config.json': b'0',
        **{f'model-{i}.safetensors': f'model-{i}.safetensors'.encode() for i in range(3)},
    }
    assert not [*get_cache_folder().glob('export-*')]


def test_failed_export_of_several_processes_leaves_nothing(emulator, monkeypatch):
    output = make_path('gs://bucket/exports/none', '--output')
    cleanups = []
    monkeypatch.setattr(multihost, '_cleanups', cleanups)
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(multihost_utils, 'sync_global_devices', lambda name: None)
    with pytest.raises(UserError, match='no such file'), open_export_folder(output) as folder:
        weights = [folder.path / 'a', folder.path / 'b']
        weights[0].write_text('a')
        folder.share_weights(weights)  # the other process has written no b
    assert output.exists() and folder.path.exists()
    for clean_up in cleanups:  # as multihost.exit_together does
        clean_up()
    assert not output.exists() and not folder.path.exists()


def test_bucket_that_cannot_be_written_is_one_line(emulator, monkeypatch):
    def forbid(*arguments, **options):
        raise OSError('Forbidden: https://x\nno access')

    monkeypatch.setattr(fsspec.filesystem('gs'), 'put_file', forbid)
    monkeypatch.setattr(type(fsspec.filesystem('gs')), 'open', forbid)  # of epath
    output = make_path('gs://bucket/x', '--output')
    expected = r'^--output gs://bucket/x.* cannot be written \(Forbidden.*storage\.objectUser$'
    with pytest.raises(UserError, match=expected):
        VectorWriter(output, META)
    with pytest.raises(UserError, match=expected), atomic_directory(output) as folder:
        (folder / 'a').touch()


def test_other_urls_are_refused():
    with pytest.raises(UserError, match='--output s3://bucket/x: only paths of the file system'):
        make_path('s3://bucket/x', '--output')
