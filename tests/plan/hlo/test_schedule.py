from types import MappingProxyType

from cpt_jax.plan.hlo.program import parse_program
from cpt_jax.plan.hlo.roofline import InstructionTime, time_instructions
from cpt_jax.plan.hlo.schedule import DCN, ICI, NetworkTime, Schedule, run_schedule

# `slow` needs 6 s of arithmetic and 1 s of memory.
TEXT = """HloModule m, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

COMPUTATIONS

ENTRY %main (x: f32[64]) -> f32[64] {
  %x = f32[64] parameter(0)
LINES
  ROOT %out = f32[64] bitcast(%x)
}
"""
COPY = '  %start = (f32[64]{0:S(1)}, f32[64], u32[]) copy-start(%x)'
COPIED = '  %end = f32[64]{0:S(1)} copy-done(%start)'
SUM = '  %send = f32[64] all-reduce-start(%x), replica_groups={}, to_apply=%add'
SUMMED = '  %sent = f32[64] all-reduce-done(%send)'
SLOW = '  %slow = f32[64] negate(%x)'
NETWORK = {'send': NetworkTime(4.0, ICI, is_async=True)}
# libtpu spreads a collective over fusions, as it does with the weights of an FSDP layer.
PART = """%PART (q: f32[16]) -> f32[64] {
  %q.PART = f32[16] parameter(0)
  %gather.PART = f32[64] all-gather(%q.PART), channel_id=7, dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"-1","flag_end":"-1"}}
  ROOT %c.PART = f32[64] custom-call(%gather.PART), custom_call_target="AsyncCollectiveKIND"
}"""
SPREAD = '\n\n'.join(
    PART.replace('PART', name).replace('KIND', kind)
    for name, kind in (('first', 'Start'), ('last', 'Done'))
)
BEGIN = (
    '  %s = f32[16] slice(%x), slice={[0:16]}',
    '  %begin = f32[64] fusion(%s), kind=kCustom, calls=%first',
)
FINISH = '  %finish = f32[64] fusion(%s), kind=kCustom, calls=%last'


def run(
    *lines: str,
    computations: str = '',
    network=NETWORK,
    moves=(2.0, 1.0),
    times=MappingProxyType({}),
) -> Schedule:
    """Runs a program whose copy takes the first number of `moves`, and whose slow instruction needs
    the second one of the memory; `times` has those of other instructions.
    """
    text = TEXT.replace('LINES', '\n'.join(lines)).replace('COMPUTATIONS', computations)
    known = {
        'slow': InstructionTime('slow', 'negate', 1, 6.0, moves[1]),
        'start': InstructionTime('start', 'copy-start', 1, 0.0, moves[0]),
    }
    return run_schedule(parse_program(text), {**known, **times}, network)


def test_what_runs_between_start_and_end_hides_a_transfer():
    assert run(COPY, SLOW, COPIED).seconds == 6
    alone = run(COPY, COPIED, SLOW)
    assert (alone.seconds, alone.exposed) == (2 + 6, {'start': 2})
    both = run(COPY, SUM, SLOW, COPIED, SUMMED)
    assert (both.seconds, both.busy) == (6, {'memory': 2 + 1, 'ici': 4})


def test_a_transfer_takes_only_what_others_leave_of_its_resource():
    # One second of the memory is left beside an instruction that needs five of six.
    assert run(COPY, SLOW, COPIED, moves=(2.0, 5.0)).seconds == 6 + 1
    second = SUM.replace('%send', '%more')
    network = NETWORK | {'more': NetworkTime(3.0, ICI, is_async=True)}
    two = [SUM, second, SLOW, SUMMED, '  %e = f32[64] all-reduce-done(%more)']
    assert run(*two, network=network).seconds == 4 + 3
    # The wait for the second includes what is left of the first.
    early = run(SUM, second, two[-1], SLOW, SUMMED, network=network)
    assert (early.seconds, early.exposed) == (4 + 3 + 6, {'send': 4, 'more': 3})
    network['more'] = NetworkTime(3.0, DCN, is_async=True)
    assert run(*two, network=network).seconds == 6


def test_synchronous_collectives_take_their_own_time():
    line = '  %all = f32[64] all-reduce(%x), replica_groups={}, to_apply=%add'
    network = {'all': NetworkTime(4.0, ICI, is_async=False)}
    found = run(line, COPY, SLOW, COPIED, network=network)
    assert (found.seconds, found.exposed) == (4 + 6, {'all': 4})
    assert run(COPY, line, COPIED, network=network).seconds == 4  # the memory is free meanwhile


def test_a_loop_repeats_its_body_and_hides_what_is_in_flight():
    loop = (
        '  %zero = s32[] constant(0)\n  %first = (s32[], f32[64]) tuple(%zero, %x)\n'
        '  %loop = (s32[], f32[64]) while(%first), condition=%test, body=%body'
    )
    body = """%test (c: (s32[], f32[64])) -> pred[] {
  %c = (s32[], f32[64]) parameter(0)
  %n = s32[] get-tuple-element(%c), index=0
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%n, %three), direction=LT
}

%body (p: (s32[], f32[64])) -> (s32[], f32[64]) {
  %p = (s32[], f32[64]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %y = f32[64] get-tuple-element(%p), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %start = (f32[64]{0:S(1)}, f32[64], u32[]) copy-start(%y)
  %end = f32[64]{0:S(1)} copy-done(%start)
  %slow = f32[64] negate(%y)
  ROOT %pair = (s32[], f32[64]) tuple(%next, %slow)
}"""
    network = {'send': NetworkTime(30.0, ICI, is_async=True)}
    found = run(SUM, loop, SUMMED, computations=body, network=network)
    # 3 x 8 seconds of the loop, and 6 more of the collective.
    assert (found.seconds, found.exposed) == (30, {'start': 3 * 2, 'send': 6})


def test_a_collective_spread_over_fusions_ends_with_the_last():
    for seconds, expected in ((4.0, 6), (9.0, 9)):
        network = {'gather.first': NetworkTime(seconds, ICI, is_async=True)}
        found = run(*BEGIN, SLOW, FINISH, computations=SPREAD, network=network)
        assert found.seconds == expected


def test_a_transfer_between_slices_ends_where_the_data_arrive():
    """As libtpu writes it: send and recv have two channels, which other collectives have too."""
    host = 'is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="sum_0"}'
    token = '  %token = token[] after-all()'
    send = f'  %send = (f32[64], u32[], token[]) send(%x, %token), channel_id=2, {host}'
    recv = f'  %recv = (f32[64], u32[], token[]) recv(%token), channel_id=1, {host}'
    sent = '  %sent = token[] send-done(%send), channel_id=2'
    received = '  %received = (f32[64], token[]) recv-done(%recv), channel_id=1'
    network = {'send': NetworkTime(4.0, DCN, is_async=True)}
    assert run(token, send, recv, sent, SLOW, received, network=network).seconds == 6
    early = run(token, send, recv, received, SLOW, sent, network=network)
    assert (early.seconds, early.exposed) == (4 + 6, {'send': 4})
    # The asynchronous collective of channel 1 is not waited for before the slow instruction.
    network['gather.first'] = NetworkTime(5.0, ICI, is_async=True)
    gather = SPREAD.replace('channel_id=7', 'channel_id=1')
    lines = [token, *BEGIN, send, recv, received, SLOW, FINISH]
    assert run(*lines, computations=gather, network=network).seconds == 4 + 6


def test_a_product_beside_the_start_of_a_collective_takes_its_time():
    network = {'gather.first': NetworkTime(1.0, ICI, is_async=True)}
    times = {'begin': InstructionTime('begin', 'fusion', 1, 3.0, 2.0)}
    found = run(*BEGIN, FINISH, computations=SPREAD, network=network, times=times)
    assert (found.seconds, found.busy) == (3, {'memory': 2, 'ici': 1})
    # Memory that takes longer is part of the collective, which ends when its data are stored.
    times['begin'] = InstructionTime('begin', 'fusion', 1, 3.0, 5.0)
    found = run(*BEGIN, FINISH, computations=SPREAD, network=network, times=times)
    assert (found.seconds, found.exposed) == (5, {'gather.first': 2})


def test_copies_are_found_within_fusions():
    relaid = """%relaid (p: f32[8,8]) -> f32[64] {
  %p = f32[8,8] parameter(0)
  %t = f32[8,8] transpose(%p), dimensions={1,0}
  ROOT %b = f32[64] bitcast(%t)
}"""
    text = TEXT.replace('COMPUTATIONS', relaid).replace(
        'LINES',
        '  %m = f32[8,8] bitcast(%x)\n  %f = f32[64] fusion(%m), kind=kLoop, calls=%relaid\n'
        + SLOW,
    )
    found = {time.name: time.is_copy for time in time_instructions(parse_program(text), 1.0, 1.0)}
    assert found['f'] and not found['slow']
