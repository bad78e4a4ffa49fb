import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from cpt_jax.plan.hlo.flops import count_flops
from cpt_jax.plan.hlo.program import HloError, parse_program
from cpt_jax.plan.hlo.walk import iterate_executed

N = 128


def layer(c, x):
    return jnp.tanh(c @ x), None


LOOPS = {
    'scan': (lambda a, w: jax.lax.scan(layer, a, w)[0], 7),
    'reverse': (lambda a, w: jax.lax.scan(layer, a, w, reverse=True)[0], 7),
    'unrolled by 3': (lambda a, w: jax.lax.scan(layer, a, w, unroll=3)[0], 7),
    'nested': (lambda a, w: jax.lax.scan(lambda c, _: (jax.lax.scan(layer, c, w)[0], None), a, None, length=5)[0], 35),
    'from 3 to 10': (lambda a, w: jax.lax.fori_loop(3, 10, lambda i, c: jnp.tanh(c @ w[i % 7]), a), 7),
    'down by 3': (lambda a, w: jax.lax.while_loop(lambda s: s[0] >= 2, lambda s: (s[0] - 3, jnp.tanh(s[1] @ w[s[0] % 7])), (20, a))[1], 7),
    'bound carried': (
        lambda a,
        w: jax.lax.while_loop(lambda s: s[0] < s[2], lambda s: (s[0] + 2, jnp.tanh(s[1] @ w[s[0] % 7]), s[2]), (1, a, 14))[1],
        7,
    ),
    'backward pass': (lambda a, w: jax.grad(lambda w: jax.lax.scan(layer, a, w)[0].astype(jnp.float32).sum())(w), 21),
}  # fmt: skip


@pytest.mark.parametrize('name', LOOPS)
def test_flops_of_loops_are_multiplied_by_the_trip_count(devices, program, name):
    function, products = LOOPS[name]
    module = program(devices, function, ((N, N), P()), ((7, N, N), P()))
    assert any(step.loops for step in iterate_executed(module))
    assert count_flops(module).total == products * 2 * N**3


def test_loop_without_a_counter_is_an_error(devices, program):
    def until_small(a, w):
        return jax.lax.while_loop(
            lambda c: c.astype(jnp.float32).sum() > 3, lambda c: jnp.tanh(c @ w), a
        )

    with pytest.raises(HloError, match='cannot derive the trip count'):
        count_flops(program(devices, until_small, ((N, N), P()), ((N, N), P())))


TEXT = """
%condition (c: (s32[], f32[])) -> pred[] {
  %c = (s32[], f32[]) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %bound = s32[] constant(BOUND)
  ROOT %test = pred[] compare(OPERANDS), direction=DIRECTION
}

%step (p: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  %by = s32[] constant(STEP)
  ROOT %next = s32[] add(%by, %p)
}

%body (b: (s32[], f32[])) -> (s32[], f32[]) {
  %b = (s32[], f32[]) parameter(0)
  %i.1 = s32[] get-tuple-element(%b), index=0
  %x = f32[] get-tuple-element(%b), index=1
  %moved = s32[] copy(%i.1)
  %stepped = s32[] fusion(%moved), kind=kLoop, calls=%step
  ROOT %t = (s32[], f32[]) tuple(%stepped, %x)
}

ENTRY %main (a: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %first = s32[] constant(FIRST)
  %start = (s32[], f32[]) tuple(%first, %a)
  %loop = (s32[], f32[]) while(%start), condition=%condition, body=%body
  ROOT %out = f32[] get-tuple-element(%loop), index=1
}
"""


def count_passes(
    first: int, bound: int, step: int, direction: str, operands: str = '%i, %bound'
) -> int:
    text = TEXT.replace('FIRST', str(first)).replace('BOUND', str(bound)).replace('STEP', str(step))
    module = parse_program(text.replace('DIRECTION', direction).replace('OPERANDS', operands))
    return next(found.times for found in iterate_executed(module) if found.instruction.name == 'x')


@pytest.mark.parametrize(
    ('case', 'expected'),
    [
        ((0, 10, 1, 'LT'), 10),
        ((1, 10, 1, 'LT'), 9),  # the first pass peeled off
        ((0, 10, 4, 'LT'), 3),
        ((0, 10, 5, 'LE'), 3),
        ((10, 0, -3, 'GT'), 4),
        ((9, 0, -3, 'GE'), 4),
        ((0, 12, 4, 'NE'), 3),
        ((5, 5, 1, 'LT'), 0),
        ((7, 5, 1, 'LT'), 0),
        ((0, 10, 1, 'GT', '%bound, %i'), 10),
    ],
    ids=str,
)
def test_trip_counts_of_all_comparisons(case, expected):
    assert count_passes(*case) == expected


ENDLESS = [
    (0, 10, -1, 'LT'), (0, 10, 0, 'LT'), (0, 10, 3, 'NE'), (0, 10, 1, 'EQ'),
    (0, 10, 1, 'LT', '%i, %i'), (0, 10, 1, 'LT', '%bound, %bound'),
]  # fmt: skip


@pytest.mark.parametrize('case', ENDLESS, ids=str)
def test_endless_loop_is_an_error(case):
    with pytest.raises(HloError, match='cannot derive the trip count of loop'):
        count_passes(*case)


def test_trip_count_that_the_compiler_states_is_used():
    stated = TEXT.replace(
        'body=%body', 'body=%body, backend_config={"known_trip_count":{"n":"42"}}'
    ).replace('DIRECTION', 'EQ')
    module = parse_program(
        stated.replace('OPERANDS', '%i, %bound')
        .replace('BOUND', '1')
        .replace('STEP', '1')
        .replace('FIRST', '0')
    )
    assert {found.times for found in iterate_executed(module) if found.loops} == {42}
