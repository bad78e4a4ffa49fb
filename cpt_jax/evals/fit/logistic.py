"""Logistic regression to convergence: all folds and all strengths of the penalty as one program.

All fits share the samples and differ in weights of 0 and 1 on them, so that one step of all is two
large matrix products. Accelerated gradient descent needs no line search, as the Hessian is bounded
(D. Böhning, Multinomial logistic regression algorithm, 1992): that of the loss is at most X^T X / 4
for two classes and X^T X / 2 for more. In the basis in which X^T X is diagonal this bound is a step
length for each direction, with which few steps are needed, whatever the scales of the directions
are.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MOST_STEPS = 2000
# What another step can win, of the loss of a classifier that knows nothing. Accuracies stop
# changing at 1e-5.
TOLERANCE = 1e-8


class LogisticFits(NamedTuple):
    """Fits for F sets of training samples and G strengths.

    Attributes:
      predicted_FxGxN: int32, the class of every sample, those of training among them; of equal
        probabilities the first class.
      steps: that all took together.
      converged: whether all reached `TOLERANCE` within `MOST_STEPS`.
    """

    predicted_FxGxN: np.ndarray
    steps: int
    converged: bool


def fit_logistic(
    x_NxD: np.ndarray,
    labels_N: np.ndarray,
    train_FxN: np.ndarray,
    strengths_G: Sequence[float],
    classes: int,
) -> LogisticFits:
    """Minimises strength * (sum of the losses of the training samples) + |weights|^2 / 2, as
    scikit-learn's LogisticRegression(C) does.

    The bias is not penalised. Two classes have one vector of weights, more have one each.

    Args:
      x_NxD: float32 samples.
      labels_N: classes from 0.
      train_FxN: bool, which samples each fit is trained on.
      strengths_G: C of scikit-learn.
      classes: how many there are.
    """
    centred_NxD = x_NxD - x_NxD.mean(axis=0, dtype=np.float64)  # the bias takes the mean up
    spectrum_D, basis_DxD = np.linalg.eigh(centred_NxD.T @ centred_NxD)
    a_NxE = np.concatenate([centred_NxD @ basis_DxD, np.ones((len(x_NxD), 1))], axis=1).astype(
        np.float32
    )
    spectrum_E = np.append(np.maximum(spectrum_D, 0), len(x_NxD)).astype(np.float32)
    predicted_NxFxG, steps, converged = _fit(
        a_NxE,
        spectrum_E,
        labels_N.astype(np.int32),
        train_FxN,
        np.asarray(strengths_G, np.float32),
        classes,
    )
    return LogisticFits(
        np.moveaxis(np.asarray(predicted_NxFxG), 0, -1), int(steps), bool(converged)
    )


class _State(NamedTuple):
    """w: the fits so far; y: where the next gradient is taken; t: their momentum; gain: what a step
    can win; step: steps so far.
    """

    w_ExFxGxK: jax.Array
    y_ExFxGxK: jax.Array
    t_FxG: jax.Array
    gain_FxG: jax.Array
    step: jax.Array


@partial(jax.jit, static_argnames='classes')
def _fit(a_NxE, spectrum_E, labels_N, train_FxN, strengths_G, classes):
    columns, bound = (1, 1 / 4) if classes == 2 else (classes, 1 / 2)
    penalty_E = jnp.ones_like(spectrum_E).at[-1].set(0)
    curvature_ExGx1 = (bound * strengths_G * spectrum_E[:, None] + penalty_E[:, None])[..., None]
    curvature_ExFxGxK = curvature_ExGx1[:, None]
    target_NxK = jax.nn.one_hot(labels_N, classes)[:, -columns:]
    product = partial(jnp.einsum, precision='highest', preferred_element_type=jnp.float32)
    enough_FxG = TOLERANCE * np.log(2) * strengths_G * train_FxN.sum(1)[:, None]

    def gradient(w_ExFxGxK):
        logits_NxFxGxK = product('ne,efgk->nfgk', a_NxE, w_ExFxGxK)
        p_NxFxGxK = (
            jax.nn.sigmoid(logits_NxFxGxK) if columns == 1 else jax.nn.softmax(logits_NxFxGxK)
        )
        wrong_NxFxGxK = (p_NxFxGxK - target_NxK[:, None, None]) * train_FxN.T[:, :, None, None]
        return (
            strengths_G[:, None] * product('ne,nfgk->efgk', a_NxE, wrong_NxFxGxK)
            + penalty_E[:, None, None, None] * w_ExFxGxK
        )

    def step(state: _State) -> _State:
        """Nesterov's, with a restart of the fits whose momentum leads uphill (O'Donoghue and
        Candès, 2015).
        """
        gradient_ExFxGxK = gradient(state.y_ExFxGxK)
        w_ExFxGxK = state.y_ExFxGxK - gradient_ExFxGxK / curvature_ExFxGxK
        moved_ExFxGxK = w_ExFxGxK - state.w_ExFxGxK
        uphill_FxG = (gradient_ExFxGxK * moved_ExFxGxK).sum((0, 3)) > 0
        t_FxG = jnp.where(uphill_FxG, 1.0, (1 + jnp.sqrt(1 + 4 * state.t_FxG**2)) / 2)
        momentum_FxG = jnp.where(uphill_FxG, 0.0, (state.t_FxG - 1) / t_FxG)
        gain_FxG = (gradient_ExFxGxK**2 / curvature_ExFxGxK).sum((0, 3)) / 2
        return _State(
            w_ExFxGxK,
            w_ExFxGxK + momentum_FxG[..., None] * moved_ExFxGxK,
            t_FxG,
            gain_FxG,
            state.step + 1,
        )

    zero_ExFxGxK = jnp.zeros((len(spectrum_E), len(train_FxN), len(strengths_G), columns))
    ones_FxG = jnp.ones(zero_ExFxGxK.shape[1:3])
    first = _State(zero_ExFxGxK, zero_ExFxGxK, ones_FxG, ones_FxG * jnp.inf, jnp.int32(0))
    last = jax.lax.while_loop(
        lambda state: (state.gain_FxG > enough_FxG).any() & (state.step < MOST_STEPS), step, first
    )
    logits_NxFxGxK = product('ne,efgk->nfgk', a_NxE, last.w_ExFxGxK)
    predicted_NxFxG = (
        (logits_NxFxGxK[..., 0] > 0).astype(jnp.int32)
        if columns == 1
        else logits_NxFxGxK.argmax(-1).astype(jnp.int32)
    )
    return predicted_NxFxG, last.step, (last.gain_FxG <= enough_FxG).all()
