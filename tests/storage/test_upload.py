"""Outputs in an emulated bucket."""

import json
import threading

import fsspec
import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from cpt_jax.exporting.directory import export
from cpt_jax.exporting.output import (
    atomic_directory,
    check_can_export,
    open_export_folder,
    remove_unfinished_export,
)
from cpt_jax.exporting.weight_shards import take_own_shards
from cpt_jax.runtime import multihost
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.cache import get_cache_folder
from cpt_jax.storage.paths import make_path
from cpt_jax.storage.upload import remove_folder, upload_folder
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


def test_output_that_another_process_has_written_is_one_line(tmp_path):
    """Processes of Slurm that are not joined write the same adapter."""
    output = tmp_path / 'out'
    with pytest.raises(UserError, match='another process has written it'), atomic_directory(output):
        output.mkdir()
        (output / 'theirs').touch()
    assert [*tmp_path.rglob('*')] == [output, output / 'theirs']


def test_killed_export_is_removed_by_the_next_one(emulator, monkeypatch, caplog):
    """Files of others are not, nor a complete export."""
    folder = 'bucket/exports/v[1]'
    output = make_path(f'gs://{folder}', '--output')
    left = ['model-00001-of-00002.safetensors', 'query/model.safetensors', 'README.md']
    for kept in ('pairs.jsonl', 'query/config.json'):
        for name in (*left, kept):
            emulator.pipe(f'{folder}/{name}', b'x')
        with pytest.raises(UserError, match='already exists'):
            export('nowhere', output, dtype='', shard_bytes=1, license_id='')
        assert len(emulator.find(folder)) == 4
        emulator.rm_file(f'{folder}/{kept}')
    with monkeypatch.context() as patch:
        patch.setattr(jax, 'process_index', lambda: 1)
        remove_unfinished_export(output)
        check_can_export(output)  # process 0 decides
    assert len(emulator.find(folder)) == 3 and not caplog.records
    with pytest.raises(UserError, match='--model nowhere: no run'):
        export('nowhere', output, dtype='', shard_bytes=1, license_id='')
    assert emulator.find(folder) == []
    assert (
        f'--output gs://{folder}: removing the 3 files of an export that was killed' in caplog.text
    )


def test_weights_are_uploaded_first_and_configs_last(emulator, monkeypatch, tmp_path):
    """An upload that is killed at any time leaves a folder that counts as unfinished."""
    written = []
    put = emulator.put_file
    monkeypatch.setattr(
        emulator, 'put_file', lambda *paths: (written.append(paths[1]), put(*paths))
    )
    for name in ('README.md', 'a.json', 'config.json', 'model.safetensors'):
        (tmp_path / name).touch()
    upload_folder(tmp_path, 'gs://bucket/x', '--output')
    assert [written[0], written[-1]] == ['bucket/x/model.safetensors', 'bucket/x/config.json']


def test_upload_that_ends_during_the_removal_is_removed(emulator, monkeypatch):
    emulator.pipe('bucket/x/a', b'x')
    remove = emulator.rm_file
    removed = []

    def remove_late(path: str) -> None:
        remove(path)
        if not removed:
            emulator.pipe('bucket/x/b', b'x')
        removed.append(path)

    monkeypatch.setattr(emulator, 'rm_file', remove_late)
    remove_folder('gs://bucket/x')
    assert removed == ['bucket/x/a', 'bucket/x/b'] and emulator.find('bucket') == []


def test_processes_exchange_weights_over_a_bucket(emulator, monkeypatch):
    """Two threads stand for two processes."""
    output = make_path('gs://bucket/exports/two', '--output')
    barrier = threading.Barrier(2, timeout=60)
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(jax, 'process_index', lambda: int(threading.current_thread().name))
    monkeypatch.setattr(multihost_utils, 'sync_global_devices', lambda name: barrier.wait())
    downloaded = []
    get = emulator.get_file
    monkeypatch.setattr(
        emulator, 'get_file', lambda *paths: (downloaded.append(paths[0]), get(*paths))
    )

    def export_weights() -> None:
        with open_export_folder(output) as folder:
            assert folder.writes_files
            weights = [folder.path / f'model-{i}.safetensors' for i in range(3)]
            for path in take_own_shards(weights):
                path.write_text(path.name)
            folder.share_weights(weights)
            (folder.path / 'config.json').write_text(str(jax.process_index()))
            assert [path.read_text() for path in weights] == [path.name for path in weights]
            # The second directory of an export has links, and needs no download.
            (folder.path / 'b').mkdir()
            links = [folder.path / 'b' / path.name for path in weights]
            for path, link in zip(weights, links, strict=True):
                link.hardlink_to(path)
            folder.share_weights(links)

    threads = [threading.Thread(target=export_weights, name=str(i)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = [f'model-{i}.safetensors' for i in range(3)]
    root = 'bucket/exports/two'
    assert {name.removeprefix(root): emulator.cat(name) for name in emulator.find(root)} == {
        '/config.json': b'0',
        **{f'{part}/{name}': name.encode() for name in names for part in ('', '/b')},
    }
    assert sorted(downloaded) == [f'{root}/{name}' for name in names]
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
