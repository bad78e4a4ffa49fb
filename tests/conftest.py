"""Sets up JAX for all tests: eight simulated CPU devices, fast compilation, and a cache for each
session.
"""

import gc
import importlib.util
import logging
import os
import platform
import socket
import sys

# Tests run each compiled program only a few times, so compilation dominates. XLA's older CPU
# emitters compile a training step in two thirds of the CPU time. Compiling in parallel parts takes
# more CPU time, and the processes of the suite keep all cores busy anyway.
FAST_COMPILE_FLAGS = '--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1'
# Of the XLA releases that the requirements allow, only that of Python 3.11 has the older emitters.
# The others end a process that sets the flag.
if sys.version_info < (3, 12):
    FAST_COMPILE_FLAGS += ' --xla_cpu_use_fusion_emitters=false'
# The setting of `fast_tpu_compilation`. JAX 0.12 has levels in place of the effort of JAX 0.10.
FAST_TPU_COMPILATION: tuple[str, str | float] = ('jax_optimization_level', 'O1')
if sys.version_info < (3, 12):
    FAST_TPU_COMPILATION = ('jax_exec_time_optimization_effort', -1.0)

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ' '.join(
    [
        os.environ.get('XLA_FLAGS', ''),
        '--xla_force_host_platform_device_count=8',
        FAST_COMPILE_FLAGS,
    ]
)
# Programs started by tests cache every compiled program for later ones.
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'

# Tracing allocates many objects, and each full garbage collection also visits the hundreds of
# thousands of objects of JAX itself. Fewer collections save a twentieth of the suite's CPU time.
gc.set_threshold(200_000, 20, 100)

import numpy as np
import pytest

from cpt_jax.text.tokenizer import Tokenizer, train_tokenizer

WORDS = (
    'list file parser return value index error string number table model token batch vector query '
    'row column name path'
).split()


@pytest.fixture(scope='session', autouse=True)
def isolated_cache(tmp_path_factory):
    """Sets an empty cache folder, so that tests never read the user's cache.

    All workers of a session share it: a program or an index that one of them has made is not made
    again.
    """
    folder = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        folder = folder.parent
    os.environ['CPT_JAX_CACHE'] = str(folder / 'shared_cache')


@pytest.fixture(scope='module')
def persistent_compilation_cache(isolated_cache):
    """Stores the programs that this process compiles in a file, so that an identical program is
    not compiled again. Compilation is half the cost of a step on eight devices.

    Use it in modules that train the same config several times: storing a program costs a sixth of
    compiling it. Do not use it in tests that inspect compiled programs or compile for a TPU that
    is not attached.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.jax_compilation_cache_dir
    jax.config.update('jax_compilation_cache_dir', f'{os.environ["CPT_JAX_CACHE"]}/xla')
    compilation_cache.reset_cache()
    yield
    jax.config.update('jax_compilation_cache_dir', before)
    compilation_cache.reset_cache()


@pytest.fixture
def gs_bucket(monkeypatch):
    """The URL of an empty bucket of an emulated Google Cloud Storage, also for started programs."""
    import fsspec
    from gcp_storage_emulator.server import create_server

    from cpt_jax.storage import bucket

    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    url = f'http://localhost:{port}'
    monkeypatch.setenv('STORAGE_EMULATOR_HOST', url)
    monkeypatch.setenv('TENSORSTORE_GCS_HTTP_URL', url)
    monkeypatch.setenv('GOOGLE_AUTH_TOKEN_FOR_TESTING', 'any')
    logging.getLogger('gcp_storage_emulator').setLevel(logging.ERROR)
    logging.getLogger('gcsfs').setLevel(logging.ERROR)
    bucket._make_client.cache_clear()
    with create_server('localhost', port, in_memory=True, default_bucket='bucket'):
        fsspec.filesystem('gs').clear_instance_cache()
        yield 'gs://bucket'
        fsspec.filesystem('gs').clear_instance_cache()
    bucket._make_client.cache_clear()


def sentences(count: int, seed: int = 0, words: int = 12) -> list[str]:
    """Returns `count` random texts of 1 to `words` words."""
    random = np.random.default_rng(seed)
    return [' '.join(random.choice(WORDS, random.integers(1, words + 1))) for _ in range(count)]


def make_tokenizer() -> Tokenizer:
    """Returns a small SentencePiece BPE tokenizer."""
    return train_tokenizer(
        sentences(200),
        vocab_size=400,
        model_type='bpe',
        normalization='identity',
        whitespace='prefix',
        characters=10**6,
        seed=0,
    )


@pytest.fixture(scope='session')
def tokenizer() -> Tokenizer:
    return make_tokenizer()


@pytest.fixture(scope='session')
def meshes():
    """Meshes of eight devices, by their sizes (data, fsdp, tensor)."""
    from cpt_jax.runtime.mesh import make_mesh

    return {sizes: make_mesh(*sizes) for sizes in [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8)]}


@pytest.fixture(scope='session')
def libtpu():
    """Skips the test if libtpu has no wheel for this machine; fails if it has one and is missing.

    requirements-dev.txt installs libtpu where a wheel exists.
    """
    if importlib.util.find_spec('libtpu') is None:
        has_wheel = sys.platform == 'linux' and platform.machine() == 'x86_64'
        (pytest.fail if has_wheel else pytest.skip)('libtpu is not installed')


@pytest.fixture(scope='module')
def fast_tpu_compilation():
    """Compiles for TPUs with less optimization, in a tenth to half of the time.

    Use it in tests that check counts and bounds. Do not use it with collectives of a few elements:
    libtpu can abort on them at this level.
    """
    import jax

    setting, fast = FAST_TPU_COMPILATION
    before = getattr(jax.config, setting)
    jax.config.update(setting, fast)
    yield
    jax.config.update(setting, before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the longest test modules first, so that no process still runs one while the others are
    idle.
    """
    longest = (
        'tests/training/test_program.py',
        'tests/training/test_step.py',
        'tests/test_types.py',
        'tests/oracles/test_benchmarks.py',
    )
    items.sort(key=lambda item: not item.nodeid.startswith(longest))
