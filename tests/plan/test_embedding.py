import jax
import numpy as np
import pytest

from cpt_jax.embed import row_batching
from cpt_jax.embed.embedder import Embedder
from cpt_jax.plan.embedding import make_embedding_plan
from cpt_jax.plan.lowering import device_bytes, lower_embedding
from cpt_jax.plan.table import show
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import make_mesh

PROMPT = {'prompt.template': 'This sentence : "{text}" means in one word:"'}


@pytest.fixture(scope='module')
def plan(tiny, libtpu, hurry):
    """Of a language model in a template, half of it on each of two devices; rows that the kernel
    for TPUs takes.
    """
    return make_embedding_plan(
        tiny(**PROMPT, **{'model.max_length': 128}), 'v5e:2x2', fsdp=2, length=128
    )


def test_it_is_the_program_that_an_embedder_runs(tiny, tokenizer, monkeypatch):
    """A full batch of the longest texts, on the CPU: what the embedder lowers, and what the plan
    does.
    """
    monkeypatch.setattr(row_batching, 'COLUMNS', {'cpu': 64, 'tpu': 64})
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
    embed, found = Embedder(parameters, tokenizer, make_mesh(fsdp=4), {'x': 16, 'y': 16}), []
    encode = embed._encode

    def lowered(*arguments):
        found.append(encode.lower(*arguments).as_text())
        return np.zeros((planned.texts, embed.width), np.float32)

    monkeypatch.setattr(embed, '_encode', lowered)
    embed(['list ' * 100] * planned.texts, 'x')
    assert planned.texts == 8 * 4 and planned.weights == 'float32'
    assert found == [planned.lowered.as_text()]


def test_a_plan_hangs_together(plan):
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
    waiting = 2 * 4 * 64 * 128 * 4  # vectors of two batches that have not been read
    assert plan.weight_bytes_per_chip + waiting < plan.hbm_bytes_per_chip < plan.hbm_limit_bytes
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


def test_the_table_names_all_that_matters(plan):
    text = show(plan)
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


def test_what_does_not_fit_is_a_result(tiny, libtpu):
    # 20 GB of embeddings.
    plan = make_embedding_plan(
        tiny(**{'model.layers': 1, 'tokenizer.vocab_size': 40_000_000}), 'v5e:1x1'
    )
    assert not plan.fits and plan.texts_per_second_bound is None
    text = show(plan)
    assert 'does not fit' in text and '--fsdp' in text and 'encode_chunks' not in text


def test_adapters_lie_beside_what_they_adapt(tiny):
    plain = lower_embedding(tiny(), jax.devices()[:1], 1, 24, '')
    adapted = lower_embedding(
        tiny(**{'lora.rank': 4, 'lora.base': 'nf4', 'model.remat': 'full'}),
        jax.devices()[:1],
        1,
        24,
        '',
    )
    ends = 3 * 4 * (4 * (128 + 128) + 2 * (128 + 512))  # of three layers, rank 4
    assert adapted.parameters == plain.parameters + ends and adapted.weights == 'nf4'
    matrices = 3 * (4 * 128 * 128 + 2 * 128 * 512)
    saved = device_bytes(plain.encoder) - (device_bytes(adapted.encoder) - 4 * ends)
    assert saved == pytest.approx(4 * matrices - (matrices / 2 + matrices / 64), rel=0.001)
    assert adapted.model_flops > plain.model_flops


@pytest.mark.parametrize(
    ('changes', 'options', 'words'),
    [
        ({}, {'fsdp': 3}, '--fsdp=3: the 8 devices are no multiple'),
        ({}, {'length': 65}, '--length=65: .* 1 to model.max_length=64'),
        ({'data.max_tokens_y': 70}, {}, 'data.max_tokens_x or y=70'),
        ({'lora.rank': 4}, {'weights': 'bfloat16'}, '--weights=bfloat16: .* lora.base=float32'),
    ],
    ids=str,
)
def test_what_does_not_go_together(tiny, changes, options, words):
    with pytest.raises(UserError, match=words):
        lower_embedding(
            tiny(**changes), jax.devices(), **{'fsdp': 1, 'length': 0, 'weights': ''} | options
        )
