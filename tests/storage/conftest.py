import logging
import socket

import fsspec
import pytest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Returns a new cache folder, so that no test reads files of another program."""
    folder = tmp_path / 'cpt_jax_cache'
    monkeypatch.setenv('CPT_JAX_CACHE', str(folder))
    return folder


@pytest.fixture
def emulator(monkeypatch):
    """An emulated Google Cloud Storage with an empty bucket; returns gcsfs's file system."""
    from gcp_storage_emulator.server import create_server

    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    monkeypatch.setenv('STORAGE_EMULATOR_HOST', f'http://localhost:{port}')
    # The emulator prints a traceback when gcsfs closes a connection.
    monkeypatch.setattr('socketserver.BaseServer.handle_error', lambda *arguments: None)
    for name in ('gcsfs', 'google.auth._default'):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with create_server('localhost', port, in_memory=True, default_bucket='bucket'):
        store = fsspec.filesystem('gs')
        store.clear_instance_cache()
        yield fsspec.filesystem('gs')
        store.clear_instance_cache()
