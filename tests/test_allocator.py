"""What the allocator saves, counted in pages that the kernel hands out."""

import subprocess
import sys

import pytest

# Prints the pages handed out in ten calls of a program whose result takes 64 MiB, 16,384 pages.
PROGRAM = """
import resource, sys
from cpt_jax.allocator import keep_freed_memory
if sys.argv[1] == 'keep':
    keep_freed_memory()
import jax, jax.numpy as jnp
call = jax.jit(lambda x: jnp.outer(x, x))
x = jnp.ones(4096)
for i in range(40):
    if i == 30:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    call(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='glibc is of Linux')
def test_what_is_freed_is_used_again():
    usual, kept = (
        int(subprocess.run([sys.executable, '-c', PROGRAM, how], capture_output=True, text=True, check=True).stdout)
        for how in ('usual', 'keep')
    )
    assert kept < usual / 10 and usual > 100_000
