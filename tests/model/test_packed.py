"""Packed pairs have the same vectors and gradients as one text at a time, without padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpt_jax.data.batch import Layout, pack_group
from cpt_jax.runs.checkpoint import to_nested_dict
from cpt_jax.runs.config import flatten
from cpt_jax.runtime.mesh import get_batch_sharding
from tests.model.test_encoder import GPT, make_encoder, make_one_device_mesh

LAYOUT = Layout(parts=1, chunks=1, pairs=5, texts=3, rows=6, row_length=24)
# Lengths of x, y and a hard negative; 0: absent.
LENGTHS_BxT = np.array([[2, 9, 0], [9, 9, 2], [9, 2, 9], [2, 9, 0], [2, 9, 9]])
WEIGHTS_BxTxD = (
    np.random.default_rng(1).normal(size=(*LENGTHS_BxT.shape, GPT.width)).astype(np.float32)
)


def make_texts() -> list[list[np.ndarray]]:
    random = np.random.default_rng(0)
    return [
        [random.integers(0, GPT.vocab_size, length).astype(np.int32) for length in pair]
        for pair in LENGTHS_BxT
    ]


def weighted_sum(encoder, weights_BxTxD, *rows):
    e_BxTxD = encoder(*rows)
    return jnp.sum(e_BxTxD * weights_BxTxD), e_BxTxD


def run(program, shape, weights_BxTxD, *rows) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns the gradient of the weighted sum by name, and the vectors."""
    with jax.set_mesh(make_one_device_mesh()):
        gradient, e_BxTxD = program(
            make_encoder(shape),
            *(
                jax.device_put(array, get_batch_sharding(make_one_device_mesh()))
                for array in (weights_BxTxD, *rows)
            ),
        )
        return dict(flatten(jax.device_get(to_nested_dict(gradient)))), np.asarray(e_BxTxD)


# Other parts of Gemma 3 and ModernBERT.
GEMMA = {
    'norm_place': 'both',
    'norm_from_one': True,
    'embedding_scale': True,
    'layer_loop': 'scan',
    'attention': 'masked',
}
MODERN = {
    'norm_bias': False,
    'first_norm': False,
    'causal': False,
    'remat': 'full',
    'attention': 'blocks',
}
# Alternating local and full layers, with a window shorter than the texts.
ALTERNATING = {
    'layers': 3,
    'positions': 'rotary',
    'window': 4,
    'local_rotary_base': 100.0,
    'local_layers': (True, False, True),
}


@pytest.mark.parametrize(
    'changes',
    [
        {'positions': 'learned', 'attention': 'blocks'},
        {'causal': False, 'attention': 'masked', 'relative_buckets': 8},
        {'positions': 'rotary', 'attention': 'masked'},
        {'positions': 'rotary', 'causal': False, 'attention': 'blocks'},
        ALTERNATING | GEMMA,
        ALTERNATING | MODERN,
    ],
    ids=['learned, causal', 'relative', 'rotary, causal', 'rotary', 'gemma', 'modernbert'],
)
def test_packed_pairs_match_one_text_at_a_time(changes):
    shape = dataclasses.replace(GPT, **changes)
    program = jax.jit(jax.grad(weighted_sum, has_aux=True))
    present_BxT = LENGTHS_BxT > 0
    batch = pack_group(make_texts(), present_BxT.astype(np.int32)[..., None], LAYOUT)
    assert (batch.ids_JxBxTxZ[:, 0] > 0).all() and np.sum(
        batch.segments_JxRxS > 0
    ) == LENGTHS_BxT.sum()
    # Some row has at least three texts.
    assert max(len(set(row[row > 0].tolist())) for row in batch.segments_JxRxS) >= 3
    packed, e_BxTxD = run(program, shape, WEIGHTS_BxTxD * present_BxT[..., None], *batch[:4])

    total = dict.fromkeys(packed, 0.0)
    for b, t in np.argwhere(present_BxT):
        text = make_texts()[b][t][None]
        separate = (
            text,
            np.ones_like(text),
            np.arange(text.size, dtype=np.int32)[None],
            np.int32([[text.size - 1]]),
        )
        gradient, e_1x1xD = run(program, shape, WEIGHTS_BxTxD[b : b + 1, t : t + 1], *separate)
        np.testing.assert_allclose(e_BxTxD[b, t], e_1x1xD[0, 0], atol=1e-5)
        total = {name: total[name] + gradient[name] for name in total}
    assert len(total) >= 10
    for name, value in packed.items():
        # The softmax does not depend on a key bias: its gradient is zero up to rounding.
        assert np.abs(value).max() > 1e-3 or name.endswith('key_bias'), name
        np.testing.assert_allclose(
            value, total[name], atol=1e-5 * max(1, np.abs(total[name]).max()), err_msg=name
        )
