import os
from pathlib import Path

import pytest


@pytest.fixture(scope='session')
def session_cache(isolated_cache) -> Path:
    """The cache folder that all workers share, for the default corpus, which is slow to build."""
    return Path(os.environ['CPT_JAX_CACHE'])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder for each test."""
    folder = tmp_path / 'cpt_jax_cache'
    monkeypatch.setenv('CPT_JAX_CACHE', str(folder))
    return folder
