"""The collectives of training steps compiled for a TPU slice. An additional collective, or one that
moves into a loop, fails here with a message that states its cost.
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
    """Plans cpt_s with small sizes on 8 chips; `section__name=value` changes the config."""
    config = load_config('configs/cpt_s.py')
    config['tokenizer']['vocab_size'] = VOCABULARY
    config['data'] |= {'max_tokens_x': 16, 'max_tokens_y': 16, 'row_length': 32}
    config['model'] |= {'width': WIDTH, 'layers': LAYERS, 'heads': 2, 'max_length': 32}
    config['train']['batch_pairs'] = 64
    for key, value in changes.items():
        section, name = key.split('__')
        config[section][name] = value
    return make_plan(config, 'v5e:2x4')


def describe_cost(row: dict) -> str:
    where = 'outside of loops'
    if row['in_loop']:
        where = f'within {row["loops"]} loops, executed in each pass'
    what = ' of gradients' if row['gradient'] else ''
    return (
        f'{row["kind"]}{what} among {row["group"]} devices, {row["count"]} times and '
        f'{row["bytes"]:,} bytes per chip and step, {where}'
    )


def find_rows(found, **wanted) -> list[dict]:
    return [
        row for row in found.collectives if all(row[key] == value for key, value in wanted.items())
    ]


def assert_only(found: list[dict], allowed: list[dict], why: str) -> None:
    """Asserts that all collectives are allowed; the failure message states the cost of others."""

    def matches(row: dict, pattern: dict) -> bool:
        return all(row[key] == value for key, value in pattern.items())

    extra = [row for row in found if not any(matches(row, pattern) for pattern in allowed)]
    assert not extra, f'{why}; new: ' + '; '.join(map(describe_cost, extra))


def test_data_parallel_chunks_send_one_gradient_per_step():
    found = plan(train__encode_chunks=4)
    assert_only(
        find_rows(found, in_loop=True), [], 'no collective is in the loops over chunks and layers'
    )
    (gradient,) = find_rows(found, gradient=True)
    assert gradient['kind'] == 'all-reduce' and gradient['sites'] == 1, describe_cost(gradient)
    # Every parameter once, in float32, and a few metrics. The gradient of the temperature belongs
    # to the loss.
    assert 4 * (found.params - 1) <= gradient['bytes'] <= 4 * found.params + 200, describe_cost(
        gradient
    )


def test_the_loss_sends_the_candidates_once_and_their_gradient_once():
    found = plan(train__encode_chunks=4)
    gathers = find_rows(found, kind='all-gather')
    # Embeddings of y, and the two ids of x and of y.
    assert sum(row['bytes'] for row in gathers) == 64 * WIDTH * 4 + 64 * 4 * 4, [
        describe_cost(row) for row in gathers
    ]
    others = find_rows(found, kind='all-reduce', gradient=False)
    # Gradients of the embeddings of y, maxima of the softmax, metrics.
    assert sum(row['bytes'] for row in others) < 64 * WIDTH * 4 + 2048, [
        describe_cost(row) for row in others
    ]


def test_fsdp_gathers_a_layer_twice_and_scatters_its_gradient_once():
    found = plan(mesh__data=1, mesh__fsdp=8)
    within = find_rows(found, in_loop=True)
    allowed = [
        {'kind': 'all-gather', 'loops': 1, 'sites': 12},
        {'kind': 'reduce-scatter', 'loops': 1, 'sites': 1, 'gradient': True},
    ]
    assert_only(
        within,
        allowed,
        'each layer gathers its weights in the forward and the backward pass, and scatters their '
        'gradient',
    )
    sizes = {row['kind']: row['bytes'] for row in within}
    # Sent in bfloat16. The gradient includes norms and biases, which the bound of 1.05 allows for.
    inner = LAYERS - 1
    assert sizes['all-gather'] == 2 * inner * 2 * LAYER, [describe_cost(row) for row in within]
    assert 2 * inner * LAYER <= sizes['reduce-scatter'] <= 1.05 * 2 * inner * LAYER, [
        describe_cost(row) for row in within
    ]


def test_collectives_in_loops_stay_within_tensor_groups():
    found = plan(mesh__data=2, mesh__fsdp=2, mesh__tensor=2, train__encode_chunks=4)
    assert_only(
        find_rows(found, in_loop=True),
        [{'group': 2, 'gradient': False}],
        'only the heads and hidden units are summed over tensor',
    )
    assert sum(row['bytes'] for row in find_rows(found, gradient=True)) < 1.1 * 4 * found.params / 2


def test_larger_model_reduces_its_gradient_per_layer_and_chunk(monkeypatch):
    """Also checks the failure message if a change caused this for a small model."""
    monkeypatch.setattr('cpt_jax.training.chunks.MAX_PARAMETERS_REDUCED_ONCE', 0)
    found = plan.__wrapped__(train__encode_chunks=4)
    assert max(row['loops'] for row in find_rows(found, gradient=True)) == 2
    with pytest.raises(
        AssertionError,
        match='all-reduce of gradients among 8 devices, 8 times .* within 2 loops, executed in '
        'each pass',
    ):
        assert_only(find_rows(found, in_loop=True), [], 'no collective')
