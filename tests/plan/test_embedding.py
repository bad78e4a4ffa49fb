import jax
import numpy as np
import pytest

from cpt_jax.embed import row_batching
from cpt_jax.embed.embedder import Embedder
from cpt_jax.plan.embedding import make_embedding_plan
from cpt_jax.plan.lowering import count_device_bytes, lower_embedding
from cpt_jax.plan.table import format_plan
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import make_mesh

PROMPT = {'prompt.template': 'This sentence : "{text}" means in one word:"'}


@pytest.fixture(scope='module')
def plan(tiny, libtpu, fast_tpu_compilation):
    """The plan of a language model with a template, sharded over two devices; the rows are long
    enough for the TPU attention kernel.
    """
    return make_embedding_plan(
        tiny(**PROMPT, **{'model.max_length': 128}), 'v5e:2x2', fsdp=2, length=128
    )


def test_plan_compiles_the_program_that_an_embedder_runs(tiny, tokenizer, monkeypatch):
    """Compares, on the CPU, what an embedder lowers for a full batch of the longest texts with what
    the plan lowers.
    """
    monkeypatch.setattr(row_batching, 'COLUMNS_PER_DEVICE', {'cpu': 64, 'tpu': 64})
    config = tiny(
        **{
            'tokenizer.vocab_size': tokenizer.vocab_size,
            'model.dtype': 'float32',
            'model.layers': 2,
        }
    )
    planned = lower_embedding(config, jax.devices(), 4, 16, '')
    parameters = jax.tree.map(
        lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding),
        planned.encoder,
    )
    embed = Embedder(parameters, tokenizer, make_mesh(fsdp=4), {'x': 16, 'y': 16})
    encode = embed._encode
    programs = []

    def lower_only(*arguments):
        programs.append(encode.lower(*arguments).as_text())
        return np.zeros((planned.texts, embed.width), np.float32)

    monkeypatch.setattr(embed, '_encode', lower_only)
    embed(['list ' * 100] * planned.texts, 'x')
    assert planned.texts == 8 * 4 and planned.weights == 'float32'
    assert programs == [planned.lowered.as_text()]


def test_fields_of_a_plan_are_consistent(plan):
    assert (plan.topology, plan.chips, plan.mesh, plan.fits) == (
        'v5e:2x2',
        4,
        {'data': 2, 'fsdp': 2, 'tensor': 1},
        True,
    )
    assert (plan.rows, plan.row_length, plan.texts_per_step, plan.tokens_per_step) == (
        64,
        128,
        4 * 64,
        4 * 8192,
    )
    assert plan.weights == 'bfloat16' and plan.weight_bytes_per_chip == pytest.approx(
        2 * plan.params / 2, rel=0.01
    )
    in_flight = 2 * 4 * 64 * 128 * 4  # embeddings of two batches that have not been read
    assert plan.weight_bytes_per_chip + in_flight < plan.hbm_bytes_per_chip < plan.hbm_limit_bytes
    assert plan.texts_per_second_bound == pytest.approx(256 / plan.lower_bound_seconds)
    assert plan.uncounted == () and plan.compiled_flops_per_step == pytest.approx(
        plan.model_flops_per_step, rel=0.02
    )


def test_weights_are_gathered_once_in_bfloat16(plan):
    weights = 2 * (4 * 128 * 128 + 2 * 128 * 512)  # of a layer
    gathered = [row for row in plan.collectives if row['kind'] == 'all-gather' and row['in_loop']]
    assert sum(row['bytes'] for row in gathered) == 2 * weights and {
        row['group'] for row in gathered
    } == {2}
    assert not any(row['gradient'] for row in plan.collectives)


def test_table_contains_all_results(plan):
    text = format_plan(plan)
    words = (
        'bfloat16',
        '2 devices share a copy',
        '256 texts of up to 128 tokens',
        'texts a second at most',
        'a batch, 1.00 x the model',
        'fits',
    )
    for word in words:
        assert word in text, word
    assert 'data.rows' not in text and 'encode_chunks' not in text


def test_plan_of_a_model_that_does_not_fit_says_so(tiny, libtpu):
    # 20 GB of embeddings.
    plan = make_embedding_plan(
        tiny(**{'model.layers': 1, 'tokenizer.vocab_size': 40_000_000}), 'v5e:1x1'
    )
    assert not plan.fits and plan.texts_per_second_bound is None
    text = format_plan(plan)
    assert 'does not fit' in text and '--fsdp' in text and 'encode_chunks' not in text


def test_adapters_are_counted_in_addition_to_their_base(tiny):
    plain = lower_embedding(tiny(), jax.devices()[:1], 1, 24, '')
    adapted = lower_embedding(
        tiny(**{'lora.rank': 4, 'lora.base': 'nf4', 'model.remat': 'full'}),
        jax.devices()[:1],
        1,
        24,
        '',
    )
    adapters = 3 * 4 * (4 * (128 + 128) + 2 * (128 + 512))  # of three layers, rank 4
    assert adapted.parameters == plain.parameters + adapters and adapted.weights == 'nf4'
    matrices = 3 * (4 * 128 * 128 + 2 * 128 * 512)
    saved = count_device_bytes(plain.encoder) - (count_device_bytes(adapted.encoder) - 4 * adapters)
    assert saved == pytest.approx(4 * matrices - (matrices / 2 + matrices / 64), rel=0.001)
    assert adapted.model_flops > plain.model_flops


@pytest.mark.parametrize(
    ('changes', 'options', 'words'),
    [
        ({}, {'fsdp': 3}, '--fsdp=3 does not divide the 8 devices'),
        ({}, {'length': 65}, '--length=65: .* 1 to model.max_length=64'),
        ({'data.max_tokens_y': 70}, {}, 'data.max_tokens_x or y=70'),
        ({'lora.rank': 4}, {'weights': 'bfloat16'}, '--weights=bfloat16: .* lora.base=float32'),
    ],
    ids=str,
)
def test_invalid_combinations_are_refused(tiny, changes, options, words):
    with pytest.raises(UserError, match=words):
        lower_embedding(
            tiny(**changes), jax.devices(), **{'fsdp': 1, 'length': 0, 'weights': ''} | options
        )
