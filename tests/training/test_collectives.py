"""What devices send each other in a step compiled for a TPU slice: one more exchange, or one within
a loop, fails here with its cost.
"""

import functools

import pytest

from cpt_jax.plan.planning import make_plan
from cpt_jax.runs.config_file import load_config

pytestmark = pytest.mark.usefixtures('libtpu')

LAYERS, WIDTH, VOCABULARY = 3, 128, 512
LAYER = 12 * WIDTH * WIDTH  # matrices: query, key, value, out, up and down


@functools.cache
def plan(**changes):
    """cpt_s with small sizes, on 8 chips."""
    config = load_config('configs/cpt_s.py')
    config['tokenizer']['vocab_size'] = VOCABULARY
    config['data'] |= {'max_tokens_x': 16, 'max_tokens_y': 16, 'row_length': 32}
    config['model'] |= {'width': WIDTH, 'layers': LAYERS, 'heads': 2, 'max_length': 32}
    config['train']['batch_pairs'] = 64
    for key, value in changes.items():
        section, name = key.split('__')
        config[section][name] = value
    return make_plan(config, 'v5e:2x4')


def cost(row: dict) -> str:
    where = (
        f'within {row["loops"]} loops, each pass of which pays for it'
        if row['in_loop']
        else 'once a step'
    )
    what = ' of gradients' if row['gradient'] else ''
    return (
        f'{row["kind"]}{what} among {row["group"]} devices, {row["count"]} times and '
        f'{row["bytes"]:,} bytes a chip a step, {where}'
    )


def rows(found, **wanted) -> list[dict]:
    return [
        row for row in found.collectives if all(row[key] == value for key, value in wanted.items())
    ]


def assert_only(found: list[dict], allowed: list[dict], why: str) -> None:
    """Each exchange that is there is one of those allowed; the message of a failure tells what the
    others cost.
    """
    extra = [
        row
        for row in found
        if not any(all(row[key] == value for key, value in one.items()) for one in allowed)
    ]
    assert not extra, f'{why}; new: ' + '; '.join(map(cost, extra))


def test_data_parallel_chunks_send_one_gradient_a_step():
    found = plan(train__encode_chunks=4)
    assert_only(
        rows(found, in_loop=True), [], 'nothing is sent within the loops over chunks and layers'
    )
    (gradient,) = rows(found, gradient=True)
    assert gradient['kind'] == 'all-reduce' and gradient['sites'] == 1, cost(gradient)
    # Every parameter once, in float32, and a few metrics; the temperature's gradient is the loss's
    # own.
    assert 4 * (found.params - 1) <= gradient['bytes'] <= 4 * found.params + 200, cost(gradient)


def test_the_loss_sends_the_candidates_once_and_their_gradient_once():
    found = plan(train__encode_chunks=4)
    gathers = rows(found, kind='all-gather')
    # Y's, and ids.
    assert sum(row['bytes'] for row in gathers) == 64 * WIDTH * 4 + 64 * 2 * 4, [
        cost(row) for row in gathers
    ]
    others = rows(found, kind='all-reduce', gradient=False)
    # Gradients of y's, maxima, metrics.
    assert sum(row['bytes'] for row in others) < 64 * WIDTH * 4 + 2048, [
        cost(row) for row in others
    ]


def test_fsdp_gathers_a_layer_twice_and_scatters_its_gradient_once():
    found = plan(mesh__data=1, mesh__fsdp=8)
    within = rows(found, in_loop=True)
    allowed = [
        {'kind': 'all-gather', 'loops': 1, 'sites': 12},
        {'kind': 'reduce-scatter', 'loops': 1, 'sites': 1, 'gradient': True},
    ]
    assert_only(
        within,
        allowed,
        'a pass over a layer gathers its weights, forward and backward, and scatters their '
        'gradient',
    )
    sizes = {row['kind']: row['bytes'] for row in within}
    inner = LAYERS - 1  # bfloat16 on the wire, and the norms and biases of a layer
    assert sizes['all-gather'] == 2 * inner * 2 * LAYER, [cost(row) for row in within]
    assert 2 * inner * LAYER <= sizes['reduce-scatter'] <= 1.05 * 2 * inner * LAYER, [
        cost(row) for row in within
    ]


def test_within_loops_tensor_devices_talk_among_themselves_alone():
    found = plan(mesh__data=2, mesh__fsdp=2, mesh__tensor=2, train__encode_chunks=4)
    assert_only(
        rows(found, in_loop=True),
        [{'group': 2, 'gradient': False}],
        'only the heads and hidden units are summed over tensor',
    )
    assert sum(row['bytes'] for row in rows(found, gradient=True)) < 1.1 * 4 * found.params / 2


def test_a_larger_model_sums_its_gradient_per_layer_and_chunk(monkeypatch):
    """And that is what the test above would say of a change that does so by mistake."""
    monkeypatch.setattr('cpt_jax.training.chunks.MAX_PARAMETERS_REDUCED_ONCE', 0)
    found = plan.__wrapped__(train__encode_chunks=4)
    assert max(row['loops'] for row in rows(found, gradient=True)) == 2
    with pytest.raises(
        AssertionError,
        match='all-reduce of gradients among 8 devices, 8 times .* within 2 loops, each pass of '
        'which pays',
    ):
        assert_only(rows(found, in_loop=True), [], 'nothing is sent')
