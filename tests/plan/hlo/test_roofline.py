import pytest

from cpt_jax.plan.forecast import make_forecast
from cpt_jax.plan.hlo.collectives import find_collectives
from cpt_jax.plan.hlo.program import parse_program
from cpt_jax.plan.hlo.roofline import sum_seconds, time_instructions
from cpt_jax.plan.network import DevicePosition, compute_network_seconds
from cpt_jax.runtime.hardware import CHIPS

TEXT = """HloModule m, is_scheduled=true

%add.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p: bf16[64,256], q: bf16[256,512]) -> bf16[64,512] {
  %p = bf16[64,256]{1,0} parameter(0)
  %q = bf16[256,512]{1,0} parameter(1)
  %d = bf16[64,512]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %n = bf16[64,512]{1,0} negate(%d)
}

ENTRY %main (x: bf16[64,256], y: bf16[256,512]) -> f32[512,64] {
  %x = bf16[64,256]{1,0} parameter(0)
  %y = bf16[256,512]{1,0} parameter(1)
  %product = bf16[64,512]{1,0} fusion(%x, %y), kind=kOutput, calls=%fused
  %wide = f32[64,512]{1,0} convert(%product)
  %reduced = f32[64,512]{1,0} all-reduce(%wide), replica_groups={{0,1,2,3}}, to_apply=%add.1, channel_id=1
  ROOT %other = f32[512,64]{0,1} copy(%reduced)
}
"""
FLOPS = 2 * 64 * 256 * 512
BYTES = {
    'product': 2 * (64 * 256 + 256 * 512 + 64 * 512),
    'wide': (2 + 4) * 64 * 512,
    'reduced': 2 * 4 * 64 * 512,
    'other': 2 * 4 * 64 * 512,
}


def test_each_instruction_takes_the_larger_of_its_two_times():
    module = parse_program(TEXT)
    for flop_rate in (1e12, 1e6):
        times = {time.name: time for time in time_instructions(module, flop_rate, 1e9)}
        expected = {name: size / 1e9 for name, size in BYTES.items()}
        expected['product'] = max(expected['product'], FLOPS / flop_rate)
        assert {name: times[name].seconds for name in BYTES} == pytest.approx(expected)
        assert sum_seconds(times.values()) == pytest.approx(sum(expected.values()))


def test_forecast_adds_collectives_that_nothing_overlaps_and_names_what_is_large():
    module = parse_program(TEXT)
    chip = CHIPS['v5e']
    positions = [DevicePosition(0, (i // 2, i % 2, 0)) for i in range(4)]
    sites = find_collectives(module, 4)
    forecast = make_forecast(module, sites, positions, chip)
    network = compute_network_seconds(sites, positions, chip)
    times = time_instructions(module, chip.flops, chip.hbm_rate)
    # The collective reads and writes main memory while it uses the network.
    memory = 8 * 64 * 512 / chip.hbm_rate
    assert network > memory
    assert forecast.seconds == pytest.approx(sum_seconds(times) - memory + network)
    waiting, float32, copies = forecast.notes
    assert waiting.startswith('1 synchronous collective outside of loops, ')
    assert float32.startswith('all-reduces in float32: 0 MiB a chip, ')
    assert copies.startswith('copies of arrays to other layouts: ') and 'other' in copies
    # Between its start and its end, other instructions may run, but none does.
    start = TEXT.replace(
        '%reduced = f32[64,512]{1,0} all-reduce(%wide)',
        '%begun = f32[64,512]{1,0} all-reduce-start(%wide)',
    ).replace(
        '  ROOT %other',
        '  %reduced = f32[64,512]{1,0} all-reduce-done(%begun)\n  ROOT %other',
    )
    module = parse_program(start)
    alone = make_forecast(module, find_collectives(module, 4), positions, chip)
    assert alone.seconds == pytest.approx(forecast.seconds)
    assert alone.notes[0].startswith('1 asynchronous collective, in part not hidden by ')


@pytest.mark.parametrize(
    ('chip', 'width', 'padded'), [('v5e', 64, 128), ('v6e', 64, 256), ('v6e', 256, 256)]
)
def test_what_narrow_heads_lose_is_named_and_not_counted(chip, width, padded):
    text = f"""HloModule m

ENTRY %main (x: bf16[64,512,{width}]) -> bf16[64,512,{width}] {{
  %x = bf16[64,512,{width}] parameter(0)
  ROOT %splash_mha_fwd.1 = bf16[64,512,{width}] custom-call(%x, %x, %x), custom_call_target="tpu_custom_call"
}}
"""
    chip = CHIPS[chip]
    forecast = make_forecast(parse_program(text), [], [DevicePosition(0, (0, 0, 0))], chip)
    flop_seconds = 2 * 2 * 64 * 512 * 512 * width / chip.flops
    byte_seconds = 2 * 4 * 64 * 512 * width / chip.hbm_rate
    assert forecast.seconds == pytest.approx(max(flop_seconds, byte_seconds))
    added = max(flop_seconds * padded / width, byte_seconds) - forecast.seconds
    if added < 0.01 * forecast.seconds:
        assert not forecast.notes
    else:
        (note,) = forecast.notes
        assert note.startswith(f'heads of {width} dimensions do not fill matrix units of {padded}')
        assert note.endswith(f'{added / forecast.seconds:.1%} of the step')
