"""Leases on a bucket have one holder at a time, and those of killed programs are taken over."""

import pytest

from cpt_jax.storage import lease
from cpt_jax.storage.bucket import get_generation
from cpt_jax.storage.locks import try_lock, wait_for_lock
from cpt_jax.storage.paths import make_path


@pytest.fixture
def path(gs_bucket, monkeypatch):
    """The path of a lease; leases are renewed every 0.2 s, and end after 1 s without that."""
    monkeypatch.setattr(lease, 'RENEW_SECONDS', 0.2)
    monkeypatch.setattr(lease, 'STALE_SECONDS', 1.0)
    monkeypatch.setattr(lease, '_SETTLE_SECONDS', 0.05)
    return make_path(f'{gs_bucket}/run/.training', '--workdir')


def test_lease_has_one_holder_and_is_given_back(path):
    with try_lock(path, 'the first') as first, try_lock(path) as second:
        assert first and not second
        assert lease.read_note(path) == 'the first'
        before = get_generation(path)
        lease.wait_until_renewed_or_stale(path)
        assert get_generation(path) != before  # the holder has renewed it
        with try_lock(path) as third:
            assert not third
    assert not path.exists()
    with wait_for_lock(path):
        assert path.exists()
    assert not path.exists()


def test_lease_of_a_killed_program_is_taken_over(path):
    assert lease._Lease(path, 'killed').take()
    with try_lock(path) as early:
        assert not early
    lease.wait_until_renewed_or_stale(path)
    with try_lock(path, 'the next') as mine:
        assert mine and lease.read_note(path) == 'the next'


def test_a_write_whose_answer_was_lost_keeps_the_lease(path, monkeypatch):
    from google.api_core.exceptions import PreconditionFailed
    from google.cloud.storage import Blob

    upload = Blob.upload_from_string

    def check_generation(blob, content, if_generation_match):  # the emulator does not
        if get_generation(path) != if_generation_match:
            raise PreconditionFailed('another generation')
        upload(blob, content)

    monkeypatch.setattr(Blob, 'upload_from_string', check_generation)
    mine, other = lease._Lease(path, 'mine'), lease._Lease(path, 'other')
    assert mine.take()
    before = mine._generation
    mine._write()
    mine._generation = before
    mine._write()
    assert mine._generation == get_generation(path) != before
    other._generation = mine._generation
    other._write()
    with pytest.raises(PreconditionFailed):
        mine._write()
    path.unlink()  # its holder gives it back meanwhile
    with pytest.raises(PreconditionFailed):
        mine._write()


def test_program_that_lost_its_lease_exits(path, monkeypatch):
    """Another program takes the lease over while this one cannot renew it."""
    from google.api_core.exceptions import PreconditionFailed

    class Exited(BaseException):
        pass

    def exit_(status: int) -> None:
        raise Exited(status)

    mine = lease._Lease(path, '')
    assert mine.take()
    monkeypatch.setattr(lease.os, '_exit', exit_)

    def refuse() -> None:
        raise PreconditionFailed('another generation')

    monkeypatch.setattr(mine, '_write', refuse)
    with pytest.raises(Exited, match='1'):
        mine.renew_until(lease.threading.Event())
