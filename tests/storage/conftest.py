import pytest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Returns a new cache folder, so that no test reads files of another program."""
    folder = tmp_path / 'cpt_jax_cache'
    monkeypatch.setenv('CPT_JAX_CACHE', str(folder))
    return folder
