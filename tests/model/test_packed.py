"""Packed = unpacked: pairs as data/packing.py lays them out have the vectors and gradients of one
text at a time, without padding.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpt_jax.data.batch import Layout, pack_group
from cpt_jax.runs.checkpoint import by_name
from cpt_jax.runs.config import flatten
from cpt_jax.runtime.mesh import batch_sharding
from tests.model.test_encoder import GPT, one_device, trained

LAYOUT = Layout(parts=1, chunks=1, pairs=5, texts=3, rows=6, row_length=24)
# X, y and a hard negative, or none.
LENGTHS_BxT = np.array([[2, 9, 0], [9, 9, 2], [9, 2, 9], [2, 9, 0], [2, 9, 9]])
WEIGHTS_BxTxD = (
    np.random.default_rng(1).normal(size=(*LENGTHS_BxT.shape, GPT.width)).astype(np.float32)
)


def texts() -> list[list[np.ndarray]]:
    random = np.random.default_rng(0)
    return [
        [random.integers(0, GPT.vocab_size, length).astype(np.int32) for length in pair]
        for pair in LENGTHS_BxT
    ]


def weighted_sum(encoder, weights_BxTxD, *rows):
    e_BxTxD = encoder(*rows)
    return jnp.sum(e_BxTxD * weights_BxTxD), e_BxTxD


def run(program, shape, weights_BxTxD, *rows) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The gradient of the weighted sum by name, and the vectors."""
    with jax.set_mesh(one_device()):
        gradient, e_BxTxD = program(
            trained(shape),
            *(
                jax.device_put(array, batch_sharding(one_device()))
                for array in (weights_BxTxD, *rows)
            ),
        )
        return dict(flatten(jax.device_get(by_name(gradient)))), np.asarray(e_BxTxD)


# Local and full layers in turn, with a window shorter than the texts; other parts of Gemma 3 and
# ModernBERT.
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
TURNS = {
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
        {'positions': 'learned', 'causal': False, 'attention': 'masked'},
        {'positions': 'rotary', 'attention': 'masked'},
        {'positions': 'rotary', 'causal': False, 'attention': 'blocks'},
        TURNS | GEMMA,
        TURNS | MODERN,
    ],
    ids=['learned, causal', 'learned', 'rotary, causal', 'rotary', 'gemma', 'modernbert'],
)
def test_packed_pairs_are_their_texts_one_at_a_time(changes):
    shape = dataclasses.replace(GPT, **changes)
    program = jax.jit(jax.grad(weighted_sum, has_aux=True))
    present_BxT = LENGTHS_BxT > 0
    batch = pack_group(texts(), present_BxT.astype(np.int32), LAYOUT)
    assert (batch.ids_CxBxT[:, 0] > 0).all() and np.sum(
        batch.segments_CxRxS > 0
    ) == LENGTHS_BxT.sum()
    # Texts in one row.
    assert max(len(set(row[row > 0].tolist())) for row in batch.segments_CxRxS) >= 3
    packed, e_BxTxD = run(program, shape, WEIGHTS_BxTxD * present_BxT[..., None], *batch[:4])

    total = dict.fromkeys(packed, 0.0)
    for b, t in np.argwhere(present_BxT):
        text = texts()[b][t][None]
        alone = (
            text,
            np.ones_like(text),
            np.arange(text.size, dtype=np.int32)[None],
            np.int32([[text.size - 1]]),
        )
        gradient, e_1x1xD = run(program, shape, WEIGHTS_BxTxD[b : b + 1, t : t + 1], *alone)
        np.testing.assert_allclose(e_BxTxD[b, t], e_1x1xD[0, 0], atol=1e-5)
        total = {name: total[name] + gradient[name] for name in total}
    assert len(total) >= 10
    for name, value in packed.items():
        # A bias of all keys shifts a softmax's scores alike: its gradient is zero but for rounding.
        assert np.abs(value).max() > 1e-3 or name.endswith('key_bias'), name
        np.testing.assert_allclose(
            value, total[name], atol=1e-5 * max(1, np.abs(total[name]).max()), err_msg=name
        )
