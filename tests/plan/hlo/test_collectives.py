import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from cpt_jax.plan.hlo.collectives import CollectiveSite, find_collectives
from cpt_jax.plan.hlo.program import HloError, parse_program

MAPPED = {
    'all-gather': lambda x: jax.lax.all_gather(x, 'x', tiled=True),
    'all-reduce': lambda x: jax.lax.psum(x, 'x'),
    'reduce-scatter': lambda x: jax.lax.psum_scatter(x, 'x', tiled=True),
    'all-to-all': lambda x: jax.lax.all_to_all(x, 'x', 0, 0, tiled=True),
    'collective-permute': lambda x: jax.lax.ppermute(x, 'x', [(i, (i + 1) % 8) for i in range(8)]),
}


def repeat_collective(kind: str, times: int):
    """Returns a function of float32[8 * 64, 256] on eight devices that executes one collective
    `times` times, in a loop if more than once.
    """

    def local(x):
        def body(c, _):
            return jnp.tanh(c + jnp.sum(MAPPED[kind](c).astype(jnp.float32)).astype(c.dtype)), None

        return MAPPED[kind](x) if times == 1 else jax.lax.scan(body, x, None, length=times)[0]

    return jax.shard_map(local, in_specs=P('x'), out_specs=P('x'), check_vma=False)


@pytest.mark.parametrize('times', [1, 5])
@pytest.mark.parametrize('kind', MAPPED)
def test_each_kind_is_found_in_and_outside_of_loops(devices, program, kind, times):
    function = repeat_collective(kind, times)
    module = program(devices, function, ((512, 256), P('x')), dtype=jnp.float32)
    shard = 64 * 256 * 4  # for smaller arrays, libtpu replaces collectives by an all-reduce
    assert {(site.kind, site.times, site.loops) for site in find_collectives(module, 8)} == {
        (kind, times, int(times > 1))
    }
    (site,) = find_collectives(module, 8)
    assert site.bytes == shard * (8 if kind == 'all-gather' else 1)
    assert (
        site.members == (2 if kind == 'collective-permute' else 8)
        and not site.dcn
        and not site.summed
    )
    if kind == 'collective-permute':
        assert site.groups == tuple((i, (i + 1) % 8) for i in range(8))
    else:
        assert site.groups == (tuple(range(8)),)


def test_weights_are_gathered_over_fsdp_and_gradients_reduced_over_all(tpus, program):
    """Weights are gathered within pairs of devices (data 4 x fsdp 2)."""

    def loss(w, x):
        w = jax.lax.with_sharding_constraint(w, P(None, None))
        return jnp.sum(jnp.tanh(x @ w).astype(jnp.float32))

    def step(w, x):
        return w - jax.lax.with_sharding_constraint(jax.grad(loss)(w, x), P('fsdp'))

    module = program(
        tpus,
        step,
        ((512, 512), P('fsdp')),
        ((64, 512), P(('data', 'fsdp'))),
        mesh=(4, 2),
        axes=('data', 'fsdp'),
    )
    sites = find_collectives(module, 8)
    gathers = [site for site in sites if site.kind == 'all-gather']
    assert {site.groups for site in gathers} == {((0, 1), (2, 3), (4, 5), (6, 7))}
    assert sum(site.bytes for site in gathers) == 512 * 512 * 2
    sums = [site for site in sites if site.kind in ('all-reduce', 'reduce-scatter')]
    assert (
        sums
        and all(site.is_gradient((4, 2, 1), 2) for site in sums)
        and not any(site.is_gradient((4, 2, 1), 2) for site in gathers)
    )


BLOCK = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

COMPUTATIONS

ENTRY %main (x: f32[8,4], y: f32[2]) -> f32[8,4] {
  %x = f32[8,4] parameter(0)
  %y = f32[2] parameter(1)
LINES
  ROOT %out = f32[8,4] copy(%x)
}
"""


def find_sites(lines: str, computations: str = '', slices: int = 1) -> list[CollectiveSite]:
    return find_collectives(
        parse_program(BLOCK.replace('LINES', lines).replace('COMPUTATIONS', computations)),
        4,
        slices,
    )


def test_start_and_done_count_as_one():
    (site,) = (
        find_sites("""  %s = ((f32[8,4]), f32[32,4]) all-gather-start(%x), replica_groups=[2,2]<=[4], dimensions={0}
  %d = f32[16,4] all-gather-done(%s)""")
    )
    assert (site.kind, site.bytes, site.members) == ('all-gather', 2 * 128, 2)


def test_payload_is_summed_over_several_arrays():
    (site,) = find_sites(
        '  %r = (f32[8,4], f32[2]) all-reduce(%x, %y), replica_groups={{0,1,2,3}}, to_apply=%add'
    )
    assert (site.kind, site.bytes, site.members) == ('all-reduce', 128 + 8, 4)


def test_collective_on_a_sparsecore_counts():
    (site,) = find_sites(
        '  %c = ((f32[8,4]), f32[8,4]) call-start(%x), async_execution_thread="sparsecore", '
        'to_apply=%away\n  %e = f32[8,4] call-done(%c)',
        """%away (p: f32[8,4]) -> f32[8,4] {
  %p = f32[8,4] parameter(0)
  ROOT %r = f32[8,4] all-reduce(%p), replica_groups={}, to_apply=%add
}""",
    )
    assert (site.kind, site.bytes, site.times) == ('all-reduce', 128, 1)
    assert site.is_async


def test_fused_all_reduce_and_slice_is_a_reduce_scatter():
    (site,) = find_sites(
        '  %f = f32[2,4] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3',
        """%all-reduce-scatter.3 (p: f32[8,4]) -> f32[2,4] {
  %p = f32[8,4] parameter(0)
  %r = f32[8,4] all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
  %z = s32[] constant(0)
  ROOT %d = f32[2,4] dynamic-slice(%r, %z, %z), dynamic_slice_sizes={2,4}
}""",
    )
    assert (site.kind, site.bytes) == ('reduce-scatter', 128)


def test_collective_spread_over_fusions_counts_once():
    gather = (
        'all-gather(%p), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}, '
        'backend_config={CONFIG}'
    )
    start = gather.replace(
        'CONFIG', '"async_collective_fusion_config":{"flag_start":"-1","flag_end":"-1"}'
    )
    later = gather.replace(
        'CONFIG', '"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}'
    )
    computations = f"""%begin (p: f32[8,4]) -> (f32[8,4], f32[32,4]) {{
  %p = f32[8,4] parameter(0)
  %g = f32[32,4] {start}
  ROOT %c = (f32[8,4], f32[32,4]) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}}

%meanwhile (p: f32[8,4]) -> f32[32,4] {{
  %p = f32[8,4] parameter(0)
  ROOT %g.1 = f32[32,4] {later}
}}

%end (p: f32[8,4]) -> f32[32,4] {{
  %p = f32[8,4] parameter(0)
  %g.2 = f32[32,4] {later}
  ROOT %c.1 = f32[32,4] custom-call(%p, %g.2), custom_call_target="AsyncCollectiveDone"
}}"""
    begin = '  %f = (f32[8,4], f32[32,4]) fusion(%x), kind=kCustom, calls=%begin'
    rest = """  %m = f32[32,4] fusion(%x), kind=kOutput, calls=%meanwhile
  %e = f32[32,4] fusion(%x), kind=kCustom, calls=%end"""
    (site,) = find_sites(f'{begin}\n{rest}', computations)
    assert (site.kind, site.bytes) == ('all-gather', 4 * 128)
    with pytest.raises(HloError, match='never start'):
        find_sites(rest, computations)


@pytest.mark.parametrize(('filled', 'kind'), [('0', 'all-gather'), ('1', 'all-reduce')])
def test_all_reduce_of_parts_of_zeros_is_a_summed_all_gather(filled, kind):
    (site,) = find_sites(
        f"""  %c = f32[] constant({filled})
  %i = s32[] constant(8)
  %z = f32[32,4] broadcast(%c), dimensions={{}}
  %f = f32[32,4] fusion(%z, %x, %i), kind=kLoop, calls=%place
  %r = f32[32,4] all-reduce(%f), replica_groups={{{{0,1,2,3}}}}, to_apply=%add""",
        """%place (into: f32[32,4], part: f32[8,4], at: s32[]) -> f32[32,4] {
  %into = f32[32,4] parameter(0)
  %part = f32[8,4] parameter(1)
  %at = s32[] parameter(2)
  ROOT %u = f32[32,4] dynamic-update-slice(%into, %part, %at, %at)
}""",
    )
    assert (site.kind, site.summed, site.bytes) == (kind, filled == '0', 512)


@pytest.mark.parametrize(
    ('transfer_type', 'kind', 'size'),
    [('ALL_REDUCE', 'all-reduce', 128), ('ALL_GATHER', 'all-gather', 3 * 128)],
)
def test_transfer_between_slices_is_found(transfer_type, kind, size):
    lines = f"""  %t = token[] after-all()
  %s = (f32[8,4], u32[], token[]) send(%x, %t), is_host_transfer=true, frontend_attributes={{_xla_megascale_transfer_type="{transfer_type}"}}
  %e = token[] send-done(%s)"""
    (site,) = find_sites(lines, slices=3)
    assert (site.kind, site.bytes, site.members, site.dcn, site.groups) == (kind, size, 3, True, ())
    with pytest.raises(HloError, match='SOMETHING'):
        find_sites(lines.replace(transfer_type, 'SOMETHING'), slices=3)


def test_gradients_are_reductions_in_the_backward_pass_over_different_pairs():
    line = (
        '  %r = f32[8,4] all-reduce(%x), replica_groups={GROUPS}, to_apply=%add, '
        'metadata={op_name="NAME"}'
    )

    def is_gradient(groups: str, name: str) -> bool:
        (site,) = find_sites(line.replace('GROUPS', groups).replace('NAME', name))
        return site.is_gradient((2, 1, 2), 2)

    over_data, over_tensor = '{0,2},{1,3}', '{0,1},{2,3}'
    assert is_gradient(over_data, 'jit(step)/transpose(jvp())/while/body/dot_general')
    assert not is_gradient(over_tensor, 'jit(step)/transpose(jvp())/while/body/dot_general')
    assert not is_gradient(over_data, 'jit(step)/jvp()/while/body/dot_general')
    assert not is_gradient(
        over_data, 'jit(step)/transpose(jvp())/checkpoint/rematted_computation/dot_general'
    )
    assert not is_gradient(over_data, 'jit(step)/transpose(jvp())/shard_map/psum')  # the loss
