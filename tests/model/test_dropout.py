"""Dropout: its rate, its scale, and masks that depend only on the token."""

import jax
import jax.numpy as jnp
import numpy as np

from cpt_jax.model.dropout import dropout, make_token_keys

KEY = jax.random.key(7)


def drop_ones(texts, positions, rate=0.25, site=3, width=512, key=KEY):
    """Applies dropout to tokens of ones; returns the mask of zeros, and the values of the rest."""
    texts, positions = jnp.asarray(texts), jnp.asarray(positions)
    out = np.asarray(
        dropout(jnp.ones((*texts.shape, width)), make_token_keys(key, texts, positions), rate, site)
    )
    return out == 0, out[out != 0]


def test_fraction_is_zero_and_the_mean_is_preserved():
    zero, rest = drop_ones(np.arange(40).reshape(4, 10), np.zeros((4, 10), int))
    # 20,480 elements: standard deviation 0.003.
    np.testing.assert_allclose(zero.mean(), 0.25, atol=0.01)
    np.testing.assert_allclose(rest, 1 / 0.75, rtol=1e-6)
    assert zero.mean(-1).min() > 0.15 and zero.mean(-1).max() < 0.35  # in each token


def test_mask_depends_on_text_and_position_only():
    texts, positions = (
        np.array([[0, 0, 5, 5], [1, 1, 1, 2]]),
        np.array([[0, 1, 0, 1], [0, 1, 2, 0]]),
    )
    zero, _ = drop_ones(texts, positions)
    moved, _ = drop_ones(texts[::-1, ::-1], positions[::-1, ::-1])
    np.testing.assert_array_equal(moved[::-1, ::-1], zero)
    assert len(np.unique(zero.reshape(8, -1), axis=0)) == 8  # every token has a different mask


def test_masks_of_different_keys_and_sites_are_independent():
    texts, positions = np.arange(8).reshape(2, 4), np.zeros((2, 4), int)
    zeros = [
        drop_ones(texts, positions, **other)[0]
        for other in ({}, {'site': 4}, {'key': jax.random.key(8)})
    ]
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        np.testing.assert_allclose(np.mean(zeros[a] & zeros[b]), 0.25**2, atol=0.02)  # independent


def test_masks_of_neighbours_are_uncorrelated():
    """Checks correlations of near elements and tokens (80,000 pairs each): the hash is not a
    cipher.
    """
    texts, positions = np.repeat(np.arange(8)[:, None], 20, axis=1), np.tile(np.arange(20), (8, 1))
    zero = drop_ones(texts, positions, rate=0.5)[0].astype(float) * 2 - 1
    near = [
        np.mean(zero[..., shift:] * zero[..., :-shift])
        for shift in (1, 2, 3, 4, 8, 16, 64, 128, 256)
    ]
    near += [
        np.mean(zero[:, 1:] * zero[:, :-1]),
        np.mean(zero[1:] * zero[:-1]),
        np.mean(zero[:, 1:, 1:] * zero[:, :-1, :-1]),
    ]
    assert np.abs(near).max() < 0.02  # standard deviation 0.0035


def test_mask_is_drawn_by_the_published_hash():
    def lowbias32(x):
        x = (x ^ x >> 16) * 0x7FEB352D % 2**32
        x = (x ^ x >> 15) * 0x846CA68B % 2**32
        return x ^ x >> 16

    zero, _ = drop_ones([[3]], [[2]])
    first, second = map(
        int,
        jax.random.key_data(
            jax.random.fold_in(make_token_keys(KEY, jnp.array([[3]]), jnp.array([[2]]))[0, 0], 3)
        ),
    )
    assert zero[0, 0].tolist() == [
        lowbias32(lowbias32((first + index) % 2**32) ^ second) < 2**30 for index in range(512)
    ]


def test_without_keys_the_input_is_returned():
    h = jnp.ones((2, 3, 4), jnp.bfloat16)
    assert dropout(h, None, 0.5, 0) is h
    assert (
        dropout(
            h, make_token_keys(KEY, jnp.zeros((2, 3), int), jnp.zeros((2, 3), int)), 0.5, 0
        ).dtype
        == jnp.bfloat16
    )
