import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cpt_jax.plan.hlo.memory import count_needed_bytes, count_traffic, parse_refused_bytes
from cpt_jax.plan.hlo.program import parse_program
from cpt_jax.plan.topology import get_topology_devices
from cpt_jax.runtime.hardware import CHIPS

GiB = 2**30
TPUS = {name: chip for name, chip in CHIPS.items() if chip.topologies}


def lower_doubling(device, size: int) -> jax.stages.Lowered:
    """Lowers a program with an argument and a result of `size` bytes each."""
    sharding = NamedSharding(Mesh(np.array([device]), ('x',)), P())
    return jax.jit(lambda x: x * 2).lower(
        jax.ShapeDtypeStruct((size // 4 // 1024, 1024), jnp.float32, sharding=sharding)
    )


@pytest.mark.parametrize('name', TPUS)
def test_memory_limits_are_those_of_the_compiler(libtpu, name):
    """A program slightly below the limit compiles; one slightly above is refused."""
    chip = TPUS[name]
    device = get_topology_devices(f'{name}:{chip.topologies[0]}', 1)[0]
    limit = chip.hbm_limit // chip.devices
    fits = lower_doubling(device, limit // 2 - 32 * 2**20).compile()
    assert count_needed_bytes(fits) == pytest.approx(limit - 64 * 2**20, abs=2 * 2**20)
    with pytest.raises(jax.errors.JaxRuntimeError) as refused:
        lower_doubling(device, limit // 2 + 32 * 2**20).compile()
    assert parse_refused_bytes(refused.value) == pytest.approx(limit + 64 * 2**20, abs=0.02 * GiB)


NOW = (
    'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries '
    '(%s) exceeds available HBM (15.75G).'
)
BEFORE = (
    'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space %s. '
    'Used %s of 15.48G hbm. Exceeded'
)


@pytest.mark.parametrize(
    ('message', 'expected'),
    [
        (NOW % '46.07G', 46.07 * GiB),
        (NOW.replace('Ran', 'E1000: CompileTimeHbmOom: Ran') % '2.00T', 2048 * GiB),
        (NOW % '512.5M', 512.5 * 2**20),
        (BEFORE % ('hbm', '21.95G'), 21.95 * GiB),
        (BEFORE.replace('15.48G hbm', '16.00M vmem') % ('vmem', '32.42M'), None),
        ('INTERNAL: memory required for HLO temporaries (46.07G)', None),
        ('INVALID_ARGUMENT: nothing of the kind', None),
    ],
)
def test_refused_bytes_are_parsed_from_the_error_message(message, expected):
    found = parse_refused_bytes(RuntimeError(message))
    assert found is None if expected is None else found == pytest.approx(expected, abs=1)


N = 4096
MOVED = {
    'element-wise': (lambda a, b: jnp.tanh(a) + b, [(N, N)] * 2, 3 * N * N),
    'parts of two arrays': (lambda a, b: a[:64] * b[64:128], [(N, N)] * 2, 3 * 64 * N),
    'product': (lambda a, b: a @ b, [(N, N)] * 2, 3 * N * N),
    'a part written into a copy': (
        lambda a, b: jax.lax.dynamic_update_slice(a, b, (8, 0)),
        [(N, N), (64, N)],
        2 * N * N + 2 * 64 * N,
    ),
    'rows of a table': (
        lambda a, b: a[(b * 100).astype(jnp.int32)],
        [(16 * N, N), (512,)],
        2 * 512 * N + 512,
    ),
}


@pytest.mark.parametrize('name', MOVED)
def test_traffic_of_small_programs(tpus, program, name):
    """Elements are bfloat16, two bytes. Data prefetched into VMEM counts as read once."""
    function, shapes, elements = MOVED[name]
    assert count_traffic(
        program(tpus, function, *((shape, P()) for shape in shapes), mesh=(1,))
    ) == pytest.approx(2 * elements, rel=0.01)


def test_each_pass_of_a_loop_reads_only_its_slice(tpus, program):
    """Each pass of the loop reads one of sixteen matrices of 8 MiB."""

    def layers(a, w):
        return jax.lax.scan(lambda c, x: (jnp.tanh(c @ x), None), a, w)[0]

    moved = count_traffic(
        program(tpus, layers, ((256, 2048), P()), ((16, 2048, 2048), P()), mesh=(1,))
    )
    weights = 16 * 2048 * 2048 * 2
    assert weights <= moved < 1.2 * weights


TEXT = """
%update (p: f32[64,128], q: f32[8,128], i: s32[], k: f32[64,128]) -> (f32[64,128], f32[64,128]) {
  %p = f32[64,128] parameter(0)
  %q = f32[8,128] parameter(1)
  %i = s32[] parameter(2)
  %k = f32[64,128] parameter(3)
  %u = f32[64,128] dynamic-update-slice(%p, %q, %i, %i)
  ROOT %t = (f32[64,128], f32[64,128]) tuple(%u, %k)
}

%wrapped (w: f32[64,128]) -> f32[64,128] {
  %w = f32[64,128] parameter(0)
  ROOT %same = f32[64,128] bitcast(%w)
}

%sum (v: f32[64,128]) -> f32[64,128]{1,0:S(1)} {
  %v = f32[64,128] parameter(0)
  %inner = f32[64,128] fusion(%v), kind=kLoop, calls=%wrapped
  ROOT %n = f32[64,128]{1,0:S(1)} negate(%inner)
}

ENTRY %main (x: f32[64,128], y: f32[8,128], z: s32[]) -> f32[64,128] {
  %x = f32[64,128] parameter(0)
  %y = f32[8,128] parameter(1)
  %z = s32[] parameter(2)
  %f = (f32[64,128], f32[64,128]) fusion(%x, %y, %z, %x), kind=kLoop, calls=%update
  %g = f32[64,128] get-tuple-element(%f), index=0
  %h = f32[64,128]{1,0:S(1)} fusion(%g), kind=kLoop, calls=%sum
  %s = (f32[64,128], f32[64,128]{1,0:S(1)}, u32[]{:S(2)}) copy-start(%h)
  %d = f32[64,128] copy-done(%s)
  ROOT %r = f32[64,128] add(%d, %d)
}
"""


def test_traffic_of_fusions_matches_a_count_by_hand():
    whole, part = 64 * 128 * 4, 8 * 128 * 4
    # Reads the part and its index, writes the part; the array that it passes on is not moved.
    update = part + 4 + part
    negate = whole  # reads all through a fusion that is an identity; writes to VMEM
    copy, add = whole, 3 * whole
    assert count_traffic(parse_program(TEXT)) == update + negate + copy + add
