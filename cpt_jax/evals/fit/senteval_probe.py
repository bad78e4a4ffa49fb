"""SentEval's own classifier (its tools/classifier.py without a hidden layer): Adam with early
stopping, many fits as one program.

What it draws at random can be had without torch: every fit starts from seed 1111, torch's first
numbers are those of the same Mersenne twister that numpy has, and its permutations are numpy's. So
all fits of one size see the same permutations and all start from the same weights, and the fits of
one fold, which differ in the weight decay alone, share every batch. What is left is rounding: sums
of float32 in another order.

Two things of the published code are kept that look like mistakes: the count of checks without
improvement never begins anew, and training stops at such a check when the count before it has
reached `TENACITY`, one later than the word says. One is left out, as it has no effect in current
torch: size_average = False, set after the loss was made (the loss is the mean over the batch).
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

DECAYS = 1e-5, 1e-4, 1e-3, 1e-2
SEED = 1111
BATCH = 64
PASSES = 4  # over the training samples, from one check to the next (epoch_size)
CHECKS = 51  # at most: while passes so far <= 200 (max_epoch)
TENACITY = 5
RATE, BETA_1, BETA_2, EPSILON = 1e-3, 0.9, 0.999, 1e-8  # of Adam in torch
VALIDATION = 0.05  # of the training samples, where no validation set is given
FOLDS_AT_ONCE = 10  # so that folds that stop early do not wait for all others


class Split(NamedTuple):
    """Positions of the training and the validation samples of a fit, and the permutations of its
    passes.
    """

    train: np.ndarray
    validation: np.ndarray
    orders_PxL: np.ndarray


class ProbeFits(NamedTuple):
    """Fits of F splits, each with G weight decays.

    Attributes:
      right_FxG: int32, how many samples of validation the best check had right.
      w_FxGxKxE: float32, the weights of that check; the last of each class is its bias.
    """

    right_FxG: np.ndarray
    w_FxGxKxE: np.ndarray


class Splits:
    """Makes the splits of one probe; those with as many training samples share their
    permutations.
    """

    def __init__(self, seed: int = SEED):
        self._seed = seed
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def given(self, train: np.ndarray, validation: np.ndarray) -> Split:
        """A fit with a validation set of its own."""
        return Split(train, validation, self._passes(len(train), 0))

    def drawn(self, train: np.ndarray) -> Split:
        """A fit that takes its validation set out of the training samples at random."""
        order, kept_out = (
            np.random.RandomState(self._seed).permutation(len(train)),
            int(VALIDATION * len(train)),
        )
        return Split(
            train[order[kept_out:]],
            train[order[:kept_out]],
            self._passes(len(train) - kept_out, len(train)),
        )

    def _passes(self, size: int, drawn_before: int) -> np.ndarray:
        """int32[P, size], the permutation of each pass; `drawn_before`: the size of a permutation
        that was drawn before them, or 0.
        """
        if (size, drawn_before) not in self._orders:
            generator = np.random.RandomState(self._seed)
            generator.permutation(drawn_before)
            orders = [generator.permutation(size).astype(np.int32) for _ in range(PASSES * CHECKS)]
            self._orders[size, drawn_before] = np.stack(orders)
        return self._orders[size, drawn_before]


def first_weights(width: int, classes: int, seed: int = SEED) -> np.ndarray:
    """float32[K, D + 1]: what torch.manual_seed(seed) and torch.nn.Linear(D, K) give, the bias
    last.

    torch makes a uniform number of 24 bits of each output of the twister, first the weights [K, D],
    then the bias.
    """
    bits = (
        np.random.RandomState(seed).randint(0, 1 << 32, classes * (width + 1), np.uint32) & 0xFFFFFF
    )
    bound = np.float32(1 / np.sqrt(width))
    numbers = bits.astype(np.float32) * np.float32(2.0**-24) * (bound + bound) - bound
    return np.concatenate(
        [numbers[: classes * width].reshape(classes, width), numbers[classes * width :, None]],
        axis=1,
    )


def fit_probes(
    x_NxD: np.ndarray,
    labels_N: np.ndarray,
    splits: Sequence[Split],
    decays_FxG: np.ndarray,
    classes: int,
    seed: int = SEED,
) -> ProbeFits:
    """Fits a classifier for each split and weight decay.

    Args:
      x_NxD: float32 samples, as they are: SentEval does not scale them.
      labels_N: classes from 0.
      splits: F of them.
      decays_FxG: float32, weight decays.
      classes: how many there are.
      seed: SentEval's is 1111; that of the splits.
    """
    different = {id(split.orders_PxL): split.orders_PxL for split in splits}
    longest = -(-max(len(split.train) for split in splits) // BATCH) * BATCH
    widest = max(len(split.validation) for split in splits)
    folds = {
        'train_L': np.stack([_padded(split.train, longest) for split in splits]),
        'size': np.array([len(split.train) for split in splits], np.int32),
        'orders': np.array(
            [list(different).index(id(split.orders_PxL)) for split in splits], np.int32
        ),
        'validation_V': np.stack([_padded(split.validation, widest) for split in splits]),
        'validation_size': np.array([len(split.validation) for split in splits], np.int32),
        'decays_G': np.asarray(decays_FxG, np.float32),
    }
    x_NxE = np.concatenate([x_NxD, np.ones((len(x_NxD), 1))], axis=1).astype(np.float32)
    orders_SxPxL = np.stack([_padded(orders_PxL, longest) for orders_PxL in different.values()])
    found = _fit_all(
        x_NxE,
        labels_N.astype(np.int32),
        first_weights(x_NxD.shape[1], classes, seed),
        orders_SxPxL,
        folds,
    )
    return ProbeFits(*map(np.asarray, found))


def _padded(positions: np.ndarray, size: int) -> np.ndarray:
    return np.pad(
        positions.astype(np.int32),
        [(0, 0)] * (positions.ndim - 1) + [(0, size - positions.shape[-1])],
    )


@jax.jit
def _fit_all(x_NxE, labels_N, first_KxE, orders_SxPxL, folds):
    def fit_one(fold):
        return _fit_one(x_NxE, labels_N, first_KxE, orders_SxPxL, **fold)

    return jax.lax.map(fit_one, folds, batch_size=FOLDS_AT_ONCE)


class _Adam(NamedTuple):
    """The weights, both moments and the steps so far."""

    w_GxKxE: jax.Array
    m_GxKxE: jax.Array
    v_GxKxE: jax.Array
    step: jax.Array


class _Search(NamedTuple):
    """Early stopping: for each weight decay the best check, its weights, the checks that were no
    better, and whether it has stopped.
    """

    adam: _Adam
    right_G: jax.Array
    best_GxKxE: jax.Array
    misses_G: jax.Array
    stopped_G: jax.Array
    check: jax.Array


def _fit_one(
    x_NxE,
    labels_N,
    first_KxE,
    orders_SxPxL,
    train_L,
    size,
    orders,
    validation_V,
    validation_size,
    decays_G,
):
    """One fold with all its weight decays."""
    product = partial(jnp.einsum, precision='highest', preferred_element_type=jnp.float32)
    target_NxK = jax.nn.one_hot(labels_N, len(first_KxE))

    def update(adam: _Adam, rows_B, valid_B) -> _Adam:
        x_BxE = x_NxE[rows_B]
        p_BxGxK = jax.nn.softmax(product('be,gke->bgk', x_BxE, adam.w_GxKxE))
        wrong_BxGxK = (p_BxGxK - target_NxK[rows_B][:, None]) * (valid_B / valid_B.sum())[
            :, None, None
        ]
        gradient_GxKxE = (
            product('bgk,be->gke', wrong_BxGxK, x_BxE) + decays_G[:, None, None] * adam.w_GxKxE
        )
        m_GxKxE = BETA_1 * adam.m_GxKxE + (1 - BETA_1) * gradient_GxKxE
        v_GxKxE = BETA_2 * adam.v_GxKxE + (1 - BETA_2) * gradient_GxKxE**2
        step = adam.step + 1
        # Torch: in float64.
        rate, scale = (
            RATE / -jnp.expm1(step * np.log(BETA_1)),
            jnp.sqrt(-jnp.expm1(step * np.log(BETA_2))),
        )
        return _Adam(
            adam.w_GxKxE - rate * m_GxKxE / (jnp.sqrt(v_GxKxE) / scale + EPSILON),
            m_GxKxE,
            v_GxKxE,
            step,
        )

    def one_pass(i, carry):
        adam, check = carry
        rows_L = train_L[orders_SxPxL[orders, check * PASSES + i]]

        def one_batch(batch, adam):
            rows_B = jax.lax.dynamic_slice(rows_L, [batch * BATCH], [BATCH])
            valid_B = batch * BATCH + jnp.arange(BATCH) < size
            # A smaller fold than the largest may lack the last batch.
            after = update(adam, rows_B, valid_B)
            return jax.tree.map(partial(jnp.where, valid_B[0]), after, adam)

        return jax.lax.fori_loop(0, len(rows_L) // BATCH, one_batch, adam), check

    def one_check(search: _Search) -> _Search:
        adam, _ = jax.lax.fori_loop(0, PASSES, one_pass, (search.adam, search.check))
        predicted_VxG = product('ve,gke->vgk', x_NxE[validation_V], adam.w_GxKxE).argmax(-1)
        valid_V = jnp.arange(len(validation_V)) < validation_size
        right_G = ((predicted_VxG == labels_N[validation_V][:, None]) & valid_V[:, None]).sum(0)
        better_G = (right_G > search.right_G) & ~search.stopped_G
        return _Search(
            adam,
            jnp.where(better_G, right_G, search.right_G),
            jnp.where(better_G[:, None, None], adam.w_GxKxE, search.best_GxKxE),
            search.misses_G + ~better_G,
            search.stopped_G | ~better_G & (search.misses_G >= TENACITY),
            search.check + 1,
        )

    w_GxKxE = jnp.repeat(first_KxE[None], len(decays_G), axis=0)
    zero_GxKxE, none_G = jnp.zeros_like(w_GxKxE), jnp.zeros(len(decays_G), jnp.int32)
    first = _Search(
        _Adam(w_GxKxE, zero_GxKxE, zero_GxKxE, jnp.int32(0)),
        none_G - 1,
        w_GxKxE,
        none_G,
        none_G > 0,
        jnp.int32(0),
    )
    last = jax.lax.while_loop(
        lambda search: ~search.stopped_G.all() & (search.check < CHECKS), one_check, first
    )
    return last.right_G, last.best_GxKxE
