"""Page faults with and without `keep_freed_memory`."""

import subprocess
import sys

import pytest

# Prints the page faults in 40 calls of a program whose result takes 64 MiB, 16,384 pages.
PROGRAM = """
import resource, sys
from cpt_jax.runtime.allocator import keep_freed_memory
if sys.argv[1] == 'keep':
    keep_freed_memory()
import jax, jax.numpy as jnp
# A program that is dispatched asynchronously runs in a thread of its own, which may free a result
# after the next call has allocated its own: under load, six blocks were in use at a time.
jax.config.update('jax_cpu_enable_async_dispatch', False)
call = jax.jit(lambda x: jnp.outer(x, x))
x = jnp.ones(4096)
# The first ten calls fill the heap and are not counted.
for i in range(50):
    if i == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    call(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

# Prints the page faults of the third allocation of a 3 GiB block, of which 2,000 pages are used.
LARGE = """
import ctypes, resource, sys
from cpt_jax.runtime.allocator import keep_freed_memory
if sys.argv[1] == 'keep':
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
for i in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(3 << 30)
    for page in range(2000):
        ctypes.memset(block + 4096 * page, 1, 1)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.parametrize(
    ('program', 'pages'), [(PROGRAM, 100_000), (LARGE, 1_999)], ids=['XLA', '3 GiB']
)
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='mallopt needs glibc')
def test_freed_memory_is_reused(program, pages):
    usual, kept = (
        int(
            subprocess.run(
                [sys.executable, '-c', program, how], capture_output=True, text=True, check=True
            ).stdout
        )
        for how in ('usual', 'keep')
    )
    assert kept < usual / 10 and usual > pages
