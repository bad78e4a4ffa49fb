"""SentEval's own classifier (its tools/classifier.py without a hidden layer): Adam with early
stopping, many fits as one program.

All of its random numbers can be reproduced without torch. Every fit starts from seed 1111, torch
and numpy have the same Mersenne Twister, and SentEval's permutations are numpy's. Therefore all
fits start from the same weights, fits with the same number of samples use the same permutations,
and the fits of one fold, which differ only in weight decay, use the same batches. The remaining
difference is rounding: float32 sums in another order.

Two properties of the published code look like mistakes and are kept. First, the number of checks
without improvement is never reset. Second, training stops at a check without improvement if the
number of earlier such checks is at least `TENACITY`, one check later than the name suggests. One
property is left out, because it has no effect in current torch: size_average = False is set after
the loss was created, so the loss stays the mean over the batch.
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
EPOCHS_PER_CHECK = 4  # epochs between two checks (SentEval's epoch_size)
MAX_CHECKS = 51  # maximum number of checks: SentEval trains while epochs <= 200 (max_epoch)
TENACITY = 5
LEARNING_RATE, BETA_1, BETA_2, EPSILON = 1e-3, 0.9, 0.999, 1e-8  # torch's defaults for Adam
VALIDATION_FRACTION = 0.05  # share of the training samples, if no validation set is given
# Number of folds that are trained together. It is small, because they run until the last one stops.
FOLDS_AT_ONCE = 10

_Array = np.ndarray | jax.Array


class Split(NamedTuple):
    """The samples of a fit.

    Attributes:
      train: indices of the training samples.
      validation: indices of the validation samples.
      orders_PxO: int32, permutation of the training samples for each of P passes.
    """

    train: np.ndarray
    validation: np.ndarray
    orders_PxO: np.ndarray


class ProbeFits(NamedTuple):
    """Fits of U splits, each with A weight decays.

    Attributes:
      right_UxA: int32, number of correct validation samples at the best check.
      w_UxAxYxE: float32, weights at that check. The last entry of each class is its bias.
    """

    right_UxA: np.ndarray
    w_UxAxYxE: np.ndarray


class SplitMaker:
    """Makes the splits of a probe. Splits with the same number of training samples share their
    permutations.
    """

    def __init__(self, seed: int = SEED):
        self._seed = seed
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def make_split(self, train: np.ndarray, validation: np.ndarray) -> Split:
        """Returns a split with a given validation set."""
        return Split(train, validation, self._draw_orders(len(train), 0))

    def draw_split(self, train: np.ndarray) -> Split:
        """Returns a split whose validation set is drawn from the training samples."""
        order = np.random.RandomState(self._seed).permutation(len(train))
        held_out = int(VALIDATION_FRACTION * len(train))
        return Split(
            train[order[held_out:]],
            train[order[:held_out]],
            self._draw_orders(len(train) - held_out, len(train)),
        )

    def _draw_orders(self, size: int, drawn_before: int) -> np.ndarray:
        """Returns int32[P, size]: the permutation of each pass.

        Args:
          size: number of training samples.
          drawn_before: size of the permutation that SentEval draws before these; 0 if none.
        """
        if (size, drawn_before) not in self._orders:
            generator = np.random.RandomState(self._seed)
            generator.permutation(drawn_before)
            orders = [
                generator.permutation(size).astype(np.int32)
                for _ in range(EPOCHS_PER_CHECK * MAX_CHECKS)
            ]
            self._orders[size, drawn_before] = np.stack(orders)
        return self._orders[size, drawn_before]


def draw_first_weights(width: int, classes: int, seed: int = SEED) -> np.ndarray:
    """Returns float32[Y, D + 1]: the initial weights of torch.nn.Linear(D, Y) after
    torch.manual_seed(seed), with the bias as the last column.

    torch uses 24 bits of each output of the twister for one uniform number, first for the weights
    [Y, D], then for the bias.
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
    decays_UxA: np.ndarray,
    classes: int,
    seed: int = SEED,
) -> ProbeFits:
    """Fits a classifier for each split and weight decay.

    Args:
      x_NxD: float32 samples, not normalized: SentEval does not scale them.
      labels_N: class indices, starting at 0.
      splits: U splits.
      decays_UxA: float32, weight decays.
      classes: number of classes.
      seed: seed of the initial weights, the same as that of the splits; 1111 in SentEval.
    """
    samples = _Samples(
        np.concatenate([x_NxD, np.ones((len(x_NxD), 1))], axis=1).astype(np.float32),
        labels_N.astype(np.int32),
    )
    distinct = {id(split.orders_PxO): split.orders_PxO for split in splits}
    longest = -(-max(len(split.train) for split in splits) // BATCH) * BATCH
    widest = max(len(split.validation) for split in splits)
    folds = _Fold(
        train_O=np.stack([_pad_indices(split.train, longest) for split in splits]),
        size=np.array([len(split.train) for split in splits], np.int32),
        orders=np.array([list(distinct).index(id(split.orders_PxO)) for split in splits], np.int32),
        validation_W=np.stack([_pad_indices(split.validation, widest) for split in splits]),
        validation_size=np.array([len(split.validation) for split in splits], np.int32),
        decays_A=np.asarray(decays_UxA, np.float32),
    )
    orders_IxPxO = np.stack([_pad_indices(orders_PxO, longest) for orders_PxO in distinct.values()])
    first_YxE = draw_first_weights(x_NxD.shape[1], classes, seed)
    found = _fit_all(samples, first_YxE, orders_IxPxO, folds)
    return ProbeFits(*map(np.asarray, found))


def _pad_indices(indices: np.ndarray, size: int) -> np.ndarray:
    """Returns int32[..., size]: indices with zeros appended."""
    widths = [(0, 0)] * (indices.ndim - 1) + [(0, size - indices.shape[-1])]
    return np.pad(indices.astype(np.int32), widths)


class _Samples(NamedTuple):
    """All samples of a task, with a column of ones for the bias, and their classes."""

    x_NxE: _Array
    labels_N: _Array


class _Fold(NamedTuple):
    """One fold with A weight decays. For U folds, each array has a leading axis U.

    Attributes:
      train_O: int32, indices of the training samples, padded to the size of the largest fold.
      size: int32, number of training samples.
      orders: int32, index of the fold's table among the S tables of permutations.
      validation_W: int32, indices of the validation samples, padded in the same way.
      validation_size: int32, number of validation samples.
      decays_A: float32, weight decays.
    """

    train_O: _Array
    size: _Array
    orders: _Array
    validation_W: _Array
    validation_size: _Array
    decays_A: _Array


class _AdamState(NamedTuple):
    """State of Adam: the weights, both moments and the number of steps."""

    w_AxYxE: jax.Array
    m_AxYxE: jax.Array
    v_AxYxE: jax.Array
    step: jax.Array


class _EarlyStopping(NamedTuple):
    """State of early stopping.

    Attributes:
      adam: state of the optimizer.
      right_A: int32, number of correct validation samples at the best check.
      best_AxYxE: float32, weights at the best check.
      misses_A: int32, number of checks without an improvement.
      stopped_A: bool, whether training with this weight decay has stopped.
      check: int32, number of checks so far.
    """

    adam: _AdamState
    right_A: jax.Array
    best_AxYxE: jax.Array
    misses_A: jax.Array
    stopped_A: jax.Array
    check: jax.Array


@jax.jit
def _fit_all(samples: _Samples, first_YxE, orders_IxPxO, folds: _Fold):
    fit_one = partial(_fit_one, samples, first_YxE, orders_IxPxO)
    return jax.lax.map(fit_one, folds, batch_size=FOLDS_AT_ONCE)


def _fit_one(samples: _Samples, first_YxE, orders_IxPxO, fold: _Fold):
    """Fits one fold with all weight decays. Returns right_A and w_AxYxE of the best checks."""

    def train_and_check(search: _EarlyStopping) -> _EarlyStopping:
        adam = _train_until_check(
            search.adam, search.check * EPOCHS_PER_CHECK, samples, orders_IxPxO, fold
        )
        return _update_best(search, adam, _count_right(adam.w_AxYxE, samples, fold))

    last = jax.lax.while_loop(
        lambda search: ~search.stopped_A.all() & (search.check < MAX_CHECKS),
        train_and_check,
        _init_search(first_YxE, len(fold.decays_A)),
    )
    return last.right_A, last.best_AxYxE


def _init_search(first_YxE, decays: int) -> _EarlyStopping:
    w_AxYxE = jnp.repeat(first_YxE[None], decays, axis=0)
    moment_AxYxE = jnp.zeros_like(w_AxYxE)
    zeros_A = jnp.zeros(decays, jnp.int32)
    return _EarlyStopping(
        adam=_AdamState(w_AxYxE, moment_AxYxE, moment_AxYxE, jnp.int32(0)),
        right_A=zeros_A - 1,
        best_AxYxE=w_AxYxE,
        misses_A=zeros_A,
        stopped_A=zeros_A > 0,
        check=jnp.int32(0),
    )


def _train_until_check(
    adam: _AdamState, first_pass, samples: _Samples, orders_IxPxO, fold: _Fold
) -> _AdamState:
    """Trains for EPOCHS_PER_CHECK epochs, until the next check."""
    targets_NxY = jax.nn.one_hot(samples.labels_N, adam.w_AxYxE.shape[1])

    def train_pass(i, adam: _AdamState) -> _AdamState:
        rows_O = fold.train_O[orders_IxPxO[fold.orders, first_pass + i]]

        def train_batch(batch, adam: _AdamState) -> _AdamState:
            rows_Z = jax.lax.dynamic_slice(rows_O, [batch * BATCH], [BATCH])
            valid_Z = batch * BATCH + jnp.arange(BATCH) < fold.size
            weights_Z = valid_Z / valid_Z.sum()
            x_ZxE, targets_ZxY = samples.x_NxE[rows_Z], targets_NxY[rows_Z]
            updated = _take_adam_step(adam, x_ZxE, targets_ZxY, weights_Z, fold.decays_A)
            # All samples of the last batches are padding if the fold is smaller than the largest.
            return jax.tree.map(partial(jnp.where, valid_Z[0]), updated, adam)

        return jax.lax.fori_loop(0, len(rows_O) // BATCH, train_batch, adam)

    return jax.lax.fori_loop(0, EPOCHS_PER_CHECK, train_pass, adam)


def _take_adam_step(adam: _AdamState, x_ZxE, targets_ZxY, weights_Z, decays_A) -> _AdamState:
    """Takes one step on the mean loss of a batch, in which sample b has weight weights_Z[b]."""
    p_ZxAxY = jax.nn.softmax(_multiply('ze,aye->zay', x_ZxE, adam.w_AxYxE))
    error_ZxAxY = (p_ZxAxY - targets_ZxY[:, None]) * weights_Z[:, None, None]
    loss_AxYxE = _multiply('zay,ze->aye', error_ZxAxY, x_ZxE)
    gradient_AxYxE = loss_AxYxE + decays_A[:, None, None] * adam.w_AxYxE
    m_AxYxE = BETA_1 * adam.m_AxYxE + (1 - BETA_1) * gradient_AxYxE
    v_AxYxE = BETA_2 * adam.v_AxYxE + (1 - BETA_2) * gradient_AxYxE**2
    step = adam.step + 1
    # Bias correction. torch computes it in float64; expm1 avoids the cancellation in float32.
    rate = LEARNING_RATE / -jnp.expm1(step * np.log(BETA_1))
    scale = jnp.sqrt(-jnp.expm1(step * np.log(BETA_2)))
    w_AxYxE = adam.w_AxYxE - rate * m_AxYxE / (jnp.sqrt(v_AxYxE) / scale + EPSILON)
    return _AdamState(w_AxYxE, m_AxYxE, v_AxYxE, step)


def _count_right(w_AxYxE, samples: _Samples, fold: _Fold):
    """Returns right_A: the number of validation samples that each classifier predicts correctly."""
    x_WxE, labels_W = samples.x_NxE[fold.validation_W], samples.labels_N[fold.validation_W]
    predicted_WxA = _multiply('we,aye->way', x_WxE, w_AxYxE).argmax(-1)
    valid_W = jnp.arange(len(labels_W)) < fold.validation_size
    return ((predicted_WxA == labels_W[:, None]) & valid_W[:, None]).sum(0)


def _update_best(search: _EarlyStopping, adam: _AdamState, right_A) -> _EarlyStopping:
    """Returns the state after a check, with updated best weights, misses and stopped fits."""
    better_A = (right_A > search.right_A) & ~search.stopped_A
    return _EarlyStopping(
        adam=adam,
        right_A=jnp.where(better_A, right_A, search.right_A),
        best_AxYxE=jnp.where(better_A[:, None, None], adam.w_AxYxE, search.best_AxYxE),
        misses_A=search.misses_A + ~better_A,
        stopped_A=search.stopped_A | ~better_A & (search.misses_A >= TENACITY),
        check=search.check + 1,
    )


def _multiply(axes: str, left, right):
    return jnp.einsum(axes, left, right, precision='highest', preferred_element_type=jnp.float32)
