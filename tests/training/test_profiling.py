import socket

import pytest

from cpt_jax.runtime.errors import UserError
from cpt_jax.training.profiling import serve_traces


def test_port_in_use_is_an_error():
    with socket.socket() as server:
        server.bind(('', 0))
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f'--profile_port={port}: Address already in use'):
            serve_traces(port)
