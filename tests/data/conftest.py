import pytest


@pytest.fixture(scope='session')
def session_cache(tmp_path_factory):
    """A cache folder that lasts for the session: for the corpus that takes a while to build."""
    return tmp_path_factory.mktemp('cache')


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own: no test reads what another program left."""
    folder = tmp_path / 'cpt_jax_cache'
    monkeypatch.setenv('CPT_JAX_CACHE', str(folder))
    return folder
