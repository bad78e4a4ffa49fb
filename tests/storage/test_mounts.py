"""Which file systems count as slow."""

import os

import pytest

from cpt_jax.storage import mounts
from cpt_jax.storage.file_stamp import compute_file_stamp
from cpt_jax.storage.mounts import is_on_slow_mount


@pytest.fixture
def mount(tmp_path, monkeypatch):
    """A function that pretends that folders of `tmp_path` are mount points of given types."""

    def pretend(**types):
        escaped = str(tmp_path).replace(' ', r'\040')
        rows = [f'none {escaped}/{name} {kind} rw 0 0' for name, kind in types.items()]
        (tmp_path / 'mounts').write_text('\n'.join(['root / ext4 rw 0 0', *rows]) + '\n')
        monkeypatch.setattr(mounts, '_MOUNTS', tmp_path / 'mounts')
        mounts._read_mounts.cache_clear()

    yield pretend
    mounts._read_mounts.cache_clear()


@pytest.mark.parametrize(
    ('kind', 'expected'),
    [
        ('fuse.gcsfuse', True), ('fuse', True), ('nfs4', True), ('cifs', True), ('9p', True),
        ('ext4', False), ('tmpfs', False), ('overlay', False), ('fuseblk', False),
        ('fuse.fuse-overlayfs', False),
    ],
)  # fmt: skip
def test_network_and_fuse_file_systems_are_slow(tmp_path, mount, kind, expected):
    mount(bucket=kind)
    assert is_on_slow_mount(tmp_path / 'bucket' / 'none' / 'file') == expected
    assert is_on_slow_mount(tmp_path / 'bucket') == expected
    assert not is_on_slow_mount(tmp_path / 'bucket2')


def test_deepest_and_latest_mount_counts(tmp_path, mount):
    mount(**{'a': 'nfs', 'a/b': 'ext4', 'a/b/c': 'nfs', 'd\\040e': 'nfs'})
    assert is_on_slow_mount(tmp_path / 'a') and not is_on_slow_mount(tmp_path / 'a/b/x')
    assert is_on_slow_mount(tmp_path / 'a/b/c/x') and is_on_slow_mount(tmp_path / 'd e' / 'x')
    (tmp_path / 'link').symlink_to(tmp_path / 'a')
    assert is_on_slow_mount(tmp_path / 'link' / 'file')


def test_system_without_a_list_of_mounts_has_no_slow_one(tmp_path, mount, monkeypatch):
    mount()
    monkeypatch.setattr(mounts, '_MOUNTS', tmp_path / 'none')
    assert not is_on_slow_mount(tmp_path)


@pytest.mark.parametrize('size', [0, 10, 16 * 4096, 10**6])
def test_stamp_changes_with_every_part_of_a_file(tmp_path, mount, size):
    """On a FUSE mount the inode does not count, because each mount has other ones."""
    path = tmp_path / 'local' / 'file'
    path.parent.mkdir()
    path.write_bytes(bytes(size))
    stamp = compute_file_stamp(path)
    assert stamp == compute_file_stamp(path) and stamp != compute_file_stamp(path, verify=True)
    copy = path.with_name('copy')
    copy.write_bytes(bytes(size))
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    os.utime(copy, ns=times)
    assert compute_file_stamp(copy) != stamp
    mount(local='fuse.gcsfuse')
    assert compute_file_stamp(copy) == compute_file_stamp(path)
    if not size:
        return
    for position in (0, size - 1):
        content = bytearray(size)
        content[position] = 1
        copy.write_bytes(content)
        os.utime(copy, ns=times)
        assert compute_file_stamp(copy) != compute_file_stamp(path)
    content = bytearray(size)
    content[size // 2] = 1
    copy.write_bytes(content)
    os.utime(copy, ns=times)
    assert compute_file_stamp(copy, verify=True) != compute_file_stamp(path, verify=True)
