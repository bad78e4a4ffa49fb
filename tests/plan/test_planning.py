import dataclasses

import pytest

from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.flops import count_embedding_flops, count_step_flops
from cpt_jax.plan import planning
from cpt_jax.plan.forecast import Forecast, make_forecast
from cpt_jax.plan.planning import make_plan
from cpt_jax.plan.table import format_plan
from cpt_jax.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures('fast_tpu_compilation')


FORECASTS = []  # of `scanned`; its plan has the larger of the forecast and the lower bound


@pytest.fixture(scope='module')
def scanned(tiny, libtpu, fast_tpu_compilation):
    def record_forecast(*args) -> Forecast:
        FORECASTS.append(make_forecast(*args))
        return FORECASTS[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, 'make_forecast', record_forecast)
        return make_plan(tiny(**{'mesh.fsdp': 2}), 'v5e:2x2')


def test_scanned_and_unrolled_layers_have_equal_flops(tiny, scanned):
    """The loop has two of the three layers. XLA's own analysis counts its body once, and so misses
    one layer, forward and backward.
    """
    unrolled = make_plan(tiny(**{'mesh.fsdp': 2, 'model.layer_loop': 'unroll'}), 'v5e:2x2')
    assert unrolled.compiled_flops_per_step == scanned.compiled_flops_per_step
    assert any(row['in_loop'] for row in scanned.collectives) and not any(
        row['in_loop'] for row in unrolled.collectives
    )


def test_without_recomputation_compiled_flops_are_model_flops(scanned):
    assert scanned.compiled_flops_per_step == pytest.approx(scanned.model_flops_per_step, rel=0.05)


def test_fields_of_a_plan_are_consistent(scanned):
    assert (scanned.topology, scanned.slices, scanned.chips, scanned.mesh) == (
        'v5e:2x2',
        1,
        4,
        {'data': 2, 'fsdp': 2, 'tensor': 1},
    )
    assert (
        scanned.batch_pairs == 64
        and scanned.tokens_per_step == 4 * scanned.rows * 64
        and scanned.rows_assumed
    )
    assert scanned.fits and 0 < scanned.hbm_bytes_per_chip < scanned.hbm_limit_bytes
    assert scanned.lower_bound_seconds == max(
        scanned.compute_seconds, scanned.memory_seconds, scanned.network_seconds
    )
    assert scanned.compute_seconds == pytest.approx(scanned.compiled_flops_per_step / 4 / 197e12)
    assert scanned.mfu_bound == pytest.approx(
        scanned.model_flops_per_step / (4 * 197e12 * scanned.lower_bound_seconds)
    )
    assert 0 < scanned.mfu_bound < 1 and scanned.uncounted == ()
    # One after another is slower than side by side, and at most as slow as all three sums together.
    parts = scanned.compute_seconds + scanned.memory_seconds + scanned.network_seconds
    assert scanned.lower_bound_seconds <= FORECASTS[0].seconds < 2 * parts
    assert scanned.forecast_seconds == FORECASTS[0].seconds
    assert scanned.mfu_forecast <= scanned.mfu_bound
    assert 'MaxText measured 56 to 67 %' in format_plan(scanned)


def test_collectives_of_sharded_weights(scanned):
    """Each of two scanned layers is gathered over fsdp; its gradient is reduced over all chips."""
    weights = 2 * (4 * 128 * 128 + 2 * 128 * 512)  # of a layer, in bfloat16
    gathered = [
        row for row in scanned.collectives if row['kind'] == 'all-gather' and row['in_loop']
    ]
    assert {row['group'] for row in gathered} == {2} and not any(
        row['gradient'] for row in gathered
    )
    # Gathered in the forward pass, and again in the backward pass unless they are saved.
    assert sum(row['bytes'] for row in gathered) in (2 * weights, 2 * 2 * weights)
    gradients = [row for row in scanned.collectives if row['gradient'] and row['in_loop']]
    assert sum(row['bytes'] for row in gradients) >= 2 * weights
    assert all(row['count'] % 2 == 0 and row['loops'] == 1 for row in gradients)


def test_results_per_chip_add_up_its_two_devices(tiny, libtpu):
    plan = make_plan(tiny(**{'model.layers': 1}), 'tpu7x:2x2x1')
    assert plan.chips == 4 and plan.mesh['data'] == 8
    assert plan.hbm_limit_bytes == pytest.approx(189.5 * 2**30, rel=0.001)
    assert plan.compute_seconds == pytest.approx(plan.compiled_flops_per_step / 4 / 2307e12)


def test_slices_exchange_the_gradient(tiny, libtpu):
    plan = make_plan(tiny(**{'model.layers': 1}), 'v5e:1x1', 2)
    assert (plan.slices, plan.chips, plan.mesh['data']) == (2, 2, 2)
    assert {row['network'] for row in plan.collectives} == {'dcn'}
    gradients = sum(row['bytes'] for row in plan.collectives if row['gradient'])
    assert gradients >= 2 * plan.params  # at least bfloat16
    assert plan.network_seconds >= gradients / (6.4e12 / 256 / 8)


def test_plan_of_a_model_that_does_not_fit_says_so(tiny, libtpu):
    # 10 GB of embeddings, and 20 of moments.
    plan = make_plan(tiny(**{'model.layers': 1, 'tokenizer.vocab_size': 20_000_000}), 'v5e:2x2')
    assert not plan.fits and plan.hbm_bytes_per_chip > plan.hbm_limit_bytes == int(15.75 * 2**30)
    missing = {field for field, value in dataclasses.asdict(plan).items() if value is None}
    assert missing == {
        'compiled_flops_per_step', 'collectives', 'compute_seconds', 'memory_seconds',
        'network_seconds', 'lower_bound_seconds',
        'mfu_bound', 'forecast_seconds', 'mfu_forecast', 'notable',
    }  # fmt: skip
    text = format_plan(plan)
    assert 'does not fit' in text and all(
        word in text for word in ('more chips', 'mesh.fsdp', 'encode_chunks', 'remat', '--sweep')
    )


@pytest.mark.parametrize(
    ('changes', 'slices', 'words'),
    [
        ({'mesh.data': 4, 'mesh.fsdp': 3}, 3, '3 slices do not divide mesh.data=4'),
        ({'mesh.data': 1, 'mesh.tensor': 4}, 1, 'mesh.tensor=4 does not divide model.heads=2'),
        ({'train.batch_pairs': 3}, 1, 'train.batch_pairs=3 .* = 4'),
        ({'model.remat': 'some'}, 1, "model.remat='some': choose one of"),
        ({'loss.dimensions': (64, 256)}, 1, 'loss.dimensions=.* model.width=128'),
    ],
)
def test_configs_that_do_not_fit_the_topology_are_refused(tiny, libtpu, changes, slices, words):
    with pytest.raises(UserError, match=words):
        make_plan(tiny(**changes), 'v5e:2x2', slices)


class FailingProgram:
    """A program on which the compiler fails."""

    def compile(self, compiler_options=None):
        from jax.errors import JaxRuntimeError

        raise JaxRuntimeError('INTERNAL: Mosaic failed')


def test_other_compiler_failures_are_user_errors(libtpu):
    with pytest.raises(UserError, match='does not compile this program: INTERNAL: Mosaic failed'):
        planning._compile_program(FailingProgram(), {})


def test_table_contains_all_results(scanned):
    text = format_plan(scanned)
    for words in (
        'v5e:2x2',
        'chips          4',
        'data 2 x fsdp 2 x tensor 1',
        'fits',
        'MFU',
        'all-gather',
        'of gradients',
        '--config.data.rows=N',
    ):
        assert words in text, words
    exact = format_plan(
        dataclasses.replace(scanned, rows_assumed=False, uncounted=('tpu_custom_call',))
    )
    assert 'data.rows=N' not in exact and 'Not counted in the arithmetic: tpu_custom_call.' in exact


def test_model_flops_match_a_count_by_hand():
    """The count has all of the first layer, the second layer only at the texts' ends, and the
    similarities; six operations per product, two forward and four backward.
    """
    config = EncoderConfig(
        vocab_size=100,
        width=8,
        layers=2,
        heads=2,
        max_length=16,
        kv_heads=1,
        head_width=4,
        hidden=24,
    )
    tokens, row, pairs, texts = 64, 16, 10, 3
    inputs, output, feed_forward = 8 * 4 * (2 + 1 + 1), 2 * 4 * 8, 2 * 8 * 24
    attention = 2 * tokens * row * 2 * 4
    first = tokens * (inputs + output + feed_forward) + attention
    last = tokens * inputs + attention + pairs * texts * (output + feed_forward)
    loss = pairs * (pairs * 2) * 8
    assert count_step_flops(config, tokens, row, pairs, texts) == 6 * (first + last + loss)
    # Only the forward pass, without similarities.
    assert count_embedding_flops(config, tokens, row, pairs * texts) == 2 * (first + last)
    gated = dataclasses.replace(config, activation='swiglu')
    assert (
        count_step_flops(gated, tokens, row, pairs, texts)
        - count_step_flops(config, tokens, row, pairs, texts)
        == 6 * (tokens + 30) * 8 * 24
    )
    # With 'blocks' attention, the last layer has queries only at the ends. They are multiplied with
    # the key matrix, then with the states of all columns; the result with the value matrix.
    folded = tokens * 2 * 2 * 8 + pairs * texts * (3 * 8 * 2 * 4 + output + feed_forward)
    assert count_step_flops(
        dataclasses.replace(config, attention='blocks'), tokens, row, pairs, texts
    ) == 6 * (first + folded + loss)
    rotated = tokens * (2 * 8 * 4 + 2 * 2 * 4) + pairs * texts * (8 * 2 * 4 + output + feed_forward)
    rotary = dataclasses.replace(config, attention='blocks', positions='rotary')
    assert count_step_flops(rotary, tokens, row, pairs, texts) == 6 * (first + rotated + loss)
    # LoRA of rank 2: frozen matrices have no weight gradient, a third of their operations. Adapters
    # have all three; those of the last layer's output are applied only at the ends.
    lora = LoRA(rank=2, targets=('key', 'down', 'gate'))
    adapters = 2 * (2 * tokens * (8 + 4) + (tokens + pairs * texts) * (24 + 8))
    matrices = first + last - 2 * attention
    assert count_step_flops(config, tokens, row, pairs, texts, lora) == 4 * matrices + 6 * (
        2 * attention + loss + adapters
    )
    assert count_embedding_flops(config, tokens, row, pairs * texts, lora) == 2 * (
        first + last + adapters
    )


def test_plan_of_a_language_model(tiny, libtpu):
    """The logits are recomputed in the backward pass, and no gradient is reduced within the loop
    over columns.
    """
    config = tiny(
        **{'model.layers': 1, 'loss.initial_temperature': 0.07, 'data.row_length': 64}
    ) | {'objective': 'lm'}
    plan = make_plan(config, 'v5e:2x2')
    tokens, width, rows = 64 * 64, 128, 512  # of the table
    assert (plan.tokens_per_step, plan.loss_form, plan.fits) == (tokens, 'next token', True)
    # Projections, feed-forward part, attention scores and weighted sums.
    layer = 4 * width * width + 8 * width * width + 2 * 64 * width
    assert plan.model_flops_per_step == 6 * tokens * (layer + 500 * width)
    needed = 6 * tokens * layer + 8 * tokens * rows * width
    assert plan.compiled_flops_per_step == pytest.approx(needed, rel=0.05)
    assert not any(row['in_loop'] for row in plan.collectives) and any(
        row['gradient'] for row in plan.collectives
    )
    assert '64 texts, 4,096 columns' in format_plan(plan)
