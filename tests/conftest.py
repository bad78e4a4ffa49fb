"""Eight simulated CPU devices for every test, programs compiled in a hurry (they run a few times),
and no cache but the test's own.
"""

import gc
import importlib.util
import os
import platform
import sys

# Programs run a few times, so that compiling them is what takes time. XLA's older way to emit CPU
# code compiles a training step in two thirds of the processor seconds; in parts compiled side by
# side it would take more, and the suite's processes fill the cores anyway.
HURRY = (
    '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false '
    '--xla_cpu_parallel_codegen_split_count=1'
)

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
    f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8 {HURRY}'
)
# Programs that tests start keep what they compile for those after them.
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'

# Tracing makes many objects beside the hundreds of thousands of JAX's own, through which Python's
# collector would go again and again: a twentieth of the suite's processor seconds.
gc.set_threshold(200_000, 20, 100)

import numpy as np
import pytest

from cpt_jax.text.tokenizer import Tokenizer, train_tokenizer

WORDS = (
    'list file parser return value index error string number table model token batch vector query '
    'row column name path'
).split()


@pytest.fixture(scope='session', autouse=True)
def cache_of_the_tests(tmp_path_factory):
    """No test reads what another program left in the user's cache."""
    os.environ['CPT_JAX_CACHE'] = str(tmp_path_factory.mktemp('cache'))


@pytest.fixture(scope='module')
def compiled_once(cache_of_the_tests):
    """Programs that this process compiles are kept in a file, so that the same one, traced again,
    is not compiled again: that is half of what a step of eight devices costs.

    For modules that train the same config several times: keeping a program takes a sixth of
    compiling it. Not for compiled programs that are looked at, nor for TPUs that are not there.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.jax_compilation_cache_dir
    jax.config.update('jax_compilation_cache_dir', f'{os.environ["CPT_JAX_CACHE"]}/xla')
    compilation_cache.reset_cache()
    yield
    jax.config.update('jax_compilation_cache_dir', before)
    compilation_cache.reset_cache()


def sentences(count: int, seed: int = 0, words: int = 12) -> list[str]:
    """Made-up texts of 1 to `words` words."""
    random = np.random.default_rng(seed)
    return [' '.join(random.choice(WORDS, random.integers(1, words + 1))) for _ in range(count)]


def make_tokenizer() -> Tokenizer:
    """A small sentencepiece model."""
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
    """One device, and every way to use eight, as functions: a mesh needs its devices in context."""
    from cpt_jax.runtime.mesh import make_mesh

    return {sizes: make_mesh(*sizes) for sizes in [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8)]}


@pytest.fixture(scope='session')
def libtpu():
    """requirements-dev.txt installs it where there are wheels."""
    if importlib.util.find_spec('libtpu') is None:
        has_wheel = sys.platform == 'linux' and platform.machine() == 'x86_64'
        (pytest.fail if has_wheel else pytest.skip)('libtpu is not installed')


@pytest.fixture(scope='module')
def hurry():
    """A tenth to a half of the time to compile for TPUs, where counts and bounds are looked at. Not
    for collectives of a few numbers, at which libtpu may then abort.
    """
    import jax

    before = jax.config.jax_exec_time_optimization_effort
    jax.config.update('jax_exec_time_optimization_effort', -1.0)
    yield
    jax.config.update('jax_exec_time_optimization_effort', before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: a process would have them left at the end, while the others have nothing
    to do.
    """
    longest = (
        'tests/training/test_program.py',
        'tests/training/test_step.py',
        'tests/test_types.py',
        'tests/oracles/test_benchmarks.py',
    )
    items.sort(key=lambda item: not item.nodeid.startswith(longest))
