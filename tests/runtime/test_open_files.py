import resource

import pytest

from cpt_jax.runtime import open_files
from cpt_jax.runtime.errors import UserError


@pytest.fixture
def limits(monkeypatch):
    """The (soft, hard) limits of a pretended machine."""
    current = [(1024, 4096)]
    monkeypatch.setattr(resource, 'getrlimit', lambda which: current[0])
    monkeypatch.setattr(resource, 'setrlimit', lambda which, new: current.__setitem__(0, new))
    return current


def test_soft_limit_is_raised(limits):
    open_files.allow_open_files(1000, 'the data')
    assert limits == [(4096, 4096)]


def test_without_a_hard_limit(limits):
    limits[0] = (1024, resource.RLIM_INFINITY)
    open_files.allow_open_files(100_000, 'the data')
    assert limits[0][0] > 100_200


def test_too_many_files_are_refused(limits):
    with pytest.raises(UserError, match='^the data has 4,000 files, .* open 4,096: raise'):
        open_files.allow_open_files(4000, 'the data')
