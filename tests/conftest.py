"""Eight simulated CPU devices for every test, programs compiled in a hurry (they run a few times), and no cache but the test's own."""

import importlib.util
import os
import platform
import sys

# Programs run a few times, so that compiling them is what takes time. XLA's older way to emit CPU code compiles a training step in two
# thirds of the processor seconds; in parts compiled side by side it would take more, and the suite's processes fill the cores anyway.
HURRY = '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8 {HURRY}'
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'  # programs that tests start keep what they compile for those after them

import numpy as np
import pytest

from cpt_jax.tokenizer import Tokenizer, train_tokenizer

WORDS = 'list file parser return value index error string number table model token batch vector query row column name path'.split()


@pytest.fixture(scope='session', autouse=True)
def cache_of_the_tests(tmp_path_factory):
    """No test reads what another program left in the user's cache."""
    os.environ['CPT_JAX_CACHE'] = str(tmp_path_factory.mktemp('cache'))


def sentences(count: int, seed: int = 0, words: int = 12) -> list[str]:
    """Made-up texts of 1 to `words` words."""
    random = np.random.default_rng(seed)
    return [' '.join(random.choice(WORDS, random.integers(1, words + 1))) for _ in range(count)]


@pytest.fixture(scope='session')
def tokenizer() -> Tokenizer:
    """A small sentencepiece model."""
    return train_tokenizer(
        sentences(200), vocab_size=400, model_type='bpe', normalization='identity', whitespace='prefix', characters=10**6, seed=0
    )


@pytest.fixture(scope='session')
def meshes():
    """One device, and every way to use eight, as functions: a mesh needs its devices in context."""
    from cpt_jax.mesh import make_mesh

    return {sizes: make_mesh(*sizes) for sizes in [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8)]}


@pytest.fixture(scope='session')
def libtpu():
    """requirements-dev.txt installs it where there are wheels."""
    if importlib.util.find_spec('libtpu') is None:
        has_wheel = sys.platform == 'linux' and platform.machine() == 'x86_64'
        (pytest.fail if has_wheel else pytest.skip)('libtpu is not installed')


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: a process would have them left at the end, while the others have nothing to do."""
    items.sort(key=lambda item: not item.nodeid.startswith(('tests/train/test_program.py', 'tests/test_benchmarks_peers.py')))
