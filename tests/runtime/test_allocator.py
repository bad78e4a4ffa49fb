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

# The beginning of programs that call malloc themselves.
MALLOC = """
import ctypes, sys
from cpt_jax.runtime.allocator import keep_freed_memory, limit_heap
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
"""

# Prints the page faults of the third allocation of a 3 GiB block, of which 2,000 pages are used.
LARGE = f"""
import resource
{MALLOC}
if sys.argv[1] == 'keep':
    keep_freed_memory()
for i in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(3 << 30)
    for page in range(2000):
        ctypes.memset(block + 4096 * page, 1, 1)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _run(program: str, how: str) -> int:
    """Returns the number that a program prints in a process of its own."""
    command = [sys.executable, '-c', program, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize(
    ('program', 'pages'), [(PROGRAM, 100_000), (LARGE, 1_999)], ids=['XLA', '3 GiB']
)
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='mallopt needs glibc')
def test_freed_memory_is_reused(program, pages):
    usual, kept = (_run(program, how) for how in ('usual', 'keep'))
    assert kept < usual / 10 and usual > pages


# Prints the pages in use after 20 rounds, in which a block is used and freed. The next block is
# larger than the hole that it leaves, as it is where a small block has taken a part of the hole.
HOLES = f"""
{MALLOC}
keep_freed_memory()
for i in range(20):
    block = libc.malloc(64 + i << 20)
    ctypes.memset(block, 1, 64 << 20)
    libc.malloc(128 << 20)  # unused memory that keeps the hole apart from the end of the heap
    libc.free(block)
    if sys.argv[1] == 'limit':
        limit_heap(limit=100 << 20)
print(int(open('/proc/self/statm').read().split()[1]))
"""


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='mallopt needs glibc')
def test_split_blocks_do_not_accumulate():
    unlimited, limited = (_run(HOLES, how) for how in ('no limit', 'limit'))
    # 20 blocks of 16,384 pages, and at most three.
    assert unlimited > 19 * 16_384 and limited < 4 * 16_384
