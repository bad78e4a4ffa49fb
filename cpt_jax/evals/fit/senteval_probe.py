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

_Array = np.ndarray | jax.Array


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
        order = np.random.RandomState(self._seed).permutation(len(train))
        kept_out = int(VALIDATION * len(train))
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
    samples = _Samples(
        np.concatenate([x_NxD, np.ones((len(x_NxD), 1))], axis=1).astype(np.float32),
        labels_N.astype(np.int32),
    )
    different = {id(split.orders_PxL): split.orders_PxL for split in splits}
    longest = -(-max(len(split.train) for split in splits) // BATCH) * BATCH
    widest = max(len(split.validation) for split in splits)
    folds = _Fold(
        train_L=np.stack([_padded(split.train, longest) for split in splits]),
        size=np.array([len(split.train) for split in splits], np.int32),
        orders=np.array(
            [list(different).index(id(split.orders_PxL)) for split in splits], np.int32
        ),
        validation_V=np.stack([_padded(split.validation, widest) for split in splits]),
        validation_size=np.array([len(split.validation) for split in splits], np.int32),
        decays_G=np.asarray(decays_FxG, np.float32),
    )
    orders_SxPxL = np.stack([_padded(orders_PxL, longest) for orders_PxL in different.values()])
    first_KxE = first_weights(x_NxD.shape[1], classes, seed)
    found = _fit_all(samples, first_KxE, orders_SxPxL, folds)
    return ProbeFits(*map(np.asarray, found))


def _padded(positions: np.ndarray, size: int) -> np.ndarray:
    return np.pad(
        positions.astype(np.int32),
        [(0, 0)] * (positions.ndim - 1) + [(0, size - positions.shape[-1])],
    )


class _Samples(NamedTuple):
    """All samples of a task, each with a 1 for the bias, and their classes."""

    x_NxE: _Array
    labels_N: _Array


class _Fold(NamedTuple):
    """One fit for each of G weight decays; of F of them, each array has a leading axis F.

    Attributes:
      train_L: positions of the training samples, filled up to that of the largest fold.
      size: how many of them there are.
      orders: which of the S tables of permutations its passes take.
      validation_V: positions of the validation samples, filled up as well.
      validation_size: how many of them there are.
      decays_G: weight decays.
    """

    train_L: _Array
    size: _Array
    orders: _Array
    validation_V: _Array
    validation_size: _Array
    decays_G: _Array


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


@jax.jit
def _fit_all(samples: _Samples, first_KxE, orders_SxPxL, folds: _Fold):
    fit_one = partial(_fit_one, samples, first_KxE, orders_SxPxL)
    return jax.lax.map(fit_one, folds, batch_size=FOLDS_AT_ONCE)


def _fit_one(samples: _Samples, first_KxE, orders_SxPxL, fold: _Fold):
    """One fold with all its weight decays: right_G and w_GxKxE of the best check of each."""

    def train_and_check(search: _Search) -> _Search:
        adam = _train(search.adam, search.check * PASSES, samples, orders_SxPxL, fold)
        return _keep_best(search, adam, _count_right(adam.w_GxKxE, samples, fold))

    last = jax.lax.while_loop(
        lambda search: ~search.stopped_G.all() & (search.check < CHECKS),
        train_and_check,
        _start(first_KxE, len(fold.decays_G)),
    )
    return last.right_G, last.best_GxKxE


def _start(first_KxE, decays: int) -> _Search:
    w_GxKxE = jnp.repeat(first_KxE[None], decays, axis=0)
    moment_GxKxE, none_G = jnp.zeros_like(w_GxKxE), jnp.zeros(decays, jnp.int32)
    return _Search(
        adam=_Adam(w_GxKxE, moment_GxKxE, moment_GxKxE, jnp.int32(0)),
        right_G=none_G - 1,
        best_GxKxE=w_GxKxE,
        misses_G=none_G,
        stopped_G=none_G > 0,
        check=jnp.int32(0),
    )


def _train(adam: _Adam, first_pass, samples: _Samples, orders_SxPxL, fold: _Fold) -> _Adam:
    """The passes from one check to the next."""
    targets_NxK = jax.nn.one_hot(samples.labels_N, adam.w_GxKxE.shape[1])

    def train_pass(i, adam: _Adam) -> _Adam:
        rows_L = fold.train_L[orders_SxPxL[fold.orders, first_pass + i]]

        def train_batch(batch, adam: _Adam) -> _Adam:
            rows_B = jax.lax.dynamic_slice(rows_L, [batch * BATCH], [BATCH])
            valid_B = batch * BATCH + jnp.arange(BATCH) < fold.size
            share_B = valid_B / valid_B.sum()
            x_BxE, targets_BxK = samples.x_NxE[rows_B], targets_NxK[rows_B]
            updated = _update(adam, x_BxE, targets_BxK, share_B, fold.decays_G)
            # A smaller fold than the largest may lack the last batch.
            return jax.tree.map(partial(jnp.where, valid_B[0]), updated, adam)

        return jax.lax.fori_loop(0, len(rows_L) // BATCH, train_batch, adam)

    return jax.lax.fori_loop(0, PASSES, train_pass, adam)


def _update(adam: _Adam, x_BxE, targets_BxK, share_B, decays_G) -> _Adam:
    """One step on the mean loss of a batch; share_B: the weight of each sample in the mean."""
    p_BxGxK = jax.nn.softmax(_product('be,gke->bgk', x_BxE, adam.w_GxKxE))
    wrong_BxGxK = (p_BxGxK - targets_BxK[:, None]) * share_B[:, None, None]
    loss_GxKxE = _product('bgk,be->gke', wrong_BxGxK, x_BxE)
    gradient_GxKxE = loss_GxKxE + decays_G[:, None, None] * adam.w_GxKxE
    m_GxKxE = BETA_1 * adam.m_GxKxE + (1 - BETA_1) * gradient_GxKxE
    v_GxKxE = BETA_2 * adam.v_GxKxE + (1 - BETA_2) * gradient_GxKxE**2
    step = adam.step + 1
    # torch corrects both for their start at zero in float64.
    rate = RATE / -jnp.expm1(step * np.log(BETA_1))
    scale = jnp.sqrt(-jnp.expm1(step * np.log(BETA_2)))
    w_GxKxE = adam.w_GxKxE - rate * m_GxKxE / (jnp.sqrt(v_GxKxE) / scale + EPSILON)
    return _Adam(w_GxKxE, m_GxKxE, v_GxKxE, step)


def _count_right(w_GxKxE, samples: _Samples, fold: _Fold):
    """right_G: how many validation samples each classifier has right."""
    x_VxE, labels_V = samples.x_NxE[fold.validation_V], samples.labels_N[fold.validation_V]
    predicted_VxG = _product('ve,gke->vgk', x_VxE, w_GxKxE).argmax(-1)
    valid_V = jnp.arange(len(labels_V)) < fold.validation_size
    return ((predicted_VxG == labels_V[:, None]) & valid_V[:, None]).sum(0)


def _keep_best(search: _Search, adam: _Adam, right_G) -> _Search:
    """The search after one more check."""
    better_G = (right_G > search.right_G) & ~search.stopped_G
    return _Search(
        adam=adam,
        right_G=jnp.where(better_G, right_G, search.right_G),
        best_GxKxE=jnp.where(better_G[:, None, None], adam.w_GxKxE, search.best_GxKxE),
        misses_G=search.misses_G + ~better_G,
        stopped_G=search.stopped_G | ~better_G & (search.misses_G >= TENACITY),
        check=search.check + 1,
    )


def _product(axes: str, left, right):
    return jnp.einsum(axes, left, right, precision='highest', preferred_element_type=jnp.float32)
