import pytest


@pytest.fixture(scope='session')
def session_cache(tmp_path_factory):
    """A cache folder for the whole session, for the default corpus, which is slow to build."""
    return tmp_path_factory.mktemp('cache')


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder for each test."""
    folder = tmp_path / 'cpt_jax_cache'
    monkeypatch.setenv('CPT_JAX_CACHE', str(folder))
    return folder
