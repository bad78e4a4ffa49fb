"""States after a common prefix match those of the whole texts, on eight devices."""

import dataclasses

import jax
import numpy as np
import pytest

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.prefix import (
    PrefixCache,
    can_share_prefix,
    choose_padded_length,
    count_common_ids,
    encode_after_prefix,
)
from cpt_jax.runtime.mesh import place_on_mesh
from tests.embed.test_embedder import make_encoder

SMALL = {'width': 16, 'layers': 2, 'heads': 4, 'max_length': 48, 'causal': True, 'remat': 'none'}
OPT = {
    'position_offset': 2,
    'activation': 'relu',
    'embedding_width': 8,
    'final_norm': False,
    'norm_place': 'after',
    'layers': 1,
}
LLAMA = {
    'positions': 'rotary',
    'norm': 'rmsnorm',
    'activation': 'swiglu',
    'bias': False,
    'kv_heads': 2,
    'layer_loop': 'scan',
}
# Two of three layers are local with a window of 9 tokens: less than the prefix, and more than most
# texts.
GEMMA = LLAMA | {
    'layers': 3,
    'local_layers': (True, False, True),
    'window': 9,
    'norm_place': 'both',
    'query_key_norm': True,
}
GPT = {'local_layers': (True, True), 'window': 5, 'parallel': 'one norm', 'attention': 'masked'}


@pytest.mark.parametrize(
    'choices',
    [OPT, LLAMA, GEMMA, GPT, LLAMA | {'dtype': 'bfloat16'}],
    ids=['opt', 'llama', 'gemma', 'gpt', 'bfloat16'],
)
def test_states_after_a_prefix_match_those_of_whole_texts(meshes, choices):
    mesh, random = meshes[2, 2, 2], np.random.default_rng(0)
    encoder = make_encoder(60, mesh, **SMALL | choices)
    common, own_R, length = random.integers(0, 60, 21), np.array([1, 9, 4, 27, 1, 16, 2, 12]), 27
    rows = len(own_R)
    tokens_RxS = random.integers(0, 60, (rows, length)).astype(np.int32)
    whole_RxS = np.concatenate([np.tile(common, (rows, 1)), tokens_RxS], axis=1).astype(np.int32)
    columns_RxS = np.tile(np.arange(len(common) + length, dtype=np.int32), (rows, 1))
    ends_R, first_R = own_R - 1, np.arange(rows) % 2  # two rows on each shard of the batch axes
    segments_RxS = (columns_RxS < len(common) + own_R[:, None]).astype(np.int32)
    eos_Rx1, whole_eos_Rx1 = (
        (first_R * size + ends)[:, None].astype(np.int32)
        for size, ends in ((27, ends_R), (48, ends_R + 21))
    )
    prefix = PrefixCache(encoder, mesh)(common)
    with jax.set_mesh(mesh):
        found = jax.jit(encode_after_prefix)(
            encoder, prefix, *place_on_mesh(mesh, tokens_RxS, eos_Rx1)
        )
        arrays = place_on_mesh(mesh, whole_RxS, segments_RxS, columns_RxS, whole_eos_Rx1)
        expected = jax.jit(lambda encoder, *rows: encoder.compute_states(*rows))(encoder, *arrays)
    assert (
        found.shape == expected.shape == (rows, 1, encoder.config.embedding_width)
        and found.dtype == np.float32
    )
    scale = np.abs(expected).max()
    assert np.ptp(np.asarray(expected), axis=0).max() > scale / 10
    np.testing.assert_allclose(found, expected, atol=scale * (0.03 if 'dtype' in choices else 1e-5))


def test_common_prefix_leaves_each_text_a_token():
    def arrays(*texts):
        return [np.array(text) for text in texts]

    assert count_common_ids(arrays([1, 2, 3, 4], [1, 2, 5, 4, 4], [1, 2, 3, 4])) == 2
    assert count_common_ids(arrays([1, 2, 3], [1, 2, 3])) == 2
    assert count_common_ids(arrays([1], [1, 2])) == count_common_ids(arrays([2, 1], [1, 1])) == 0


def test_padded_lengths_are_few():
    config = EncoderConfig(vocab_size=9, **SMALL | {'max_length': 2000})
    lengths = [choose_padded_length(length, config) for length in range(1, 2001)]
    assert all(length <= padded <= 2000 for length, padded in enumerate(lengths, 1))
    assert (
        sorted(set(lengths[:512])) == [64, 128, 192, 256, 320, 384, 448, 512]
        and len(set(lengths)) <= 16
    )
    assert can_share_prefix(config)
    assert not can_share_prefix(
        dataclasses.replace(config, pooling='mean')
    ) and not can_share_prefix(dataclasses.replace(config, causal=False))
