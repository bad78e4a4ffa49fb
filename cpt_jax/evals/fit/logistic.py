"""Logistic regression to convergence: all folds and regularization strengths as one program.

All fits share the samples. They differ only in which samples have weight 1 and which have weight 0,
so one step of all fits is two large matrix products.

Accelerated gradient descent needs no line search, because the Hessian of the loss is bounded by
X^T X / 4 for two classes and by X^T X / 2 for more (D. Böhning, Multinomial logistic regression
algorithm, 1992). In the basis that diagonalizes X^T X, this bound gives a step size for each
direction, so few steps are needed even if the directions have very different scales.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MAX_STEPS = 2000
# A fit stops if another step could reduce its loss by at most this fraction of the loss at zero
# weights. Accuracies already stop changing at 1e-5.
TOLERANCE = 1e-8


class LogisticFits(NamedTuple):
    """Fits for U sets of training samples and A strengths.

    Attributes:
      predicted_UxAxN: int32, predicted class of every sample, including the training samples. Ties
        are broken in favor of the smaller class index.
      steps: number of steps, which are common to all fits.
      converged: whether all fits reached `TOLERANCE` within `MAX_STEPS`.
    """

    predicted_UxAxN: np.ndarray
    steps: int
    converged: bool


def fit_logistic(
    x_NxD: np.ndarray,
    labels_N: np.ndarray,
    train_UxN: np.ndarray,
    strengths_A: Sequence[float],
    classes: int,
) -> LogisticFits:
    """Fits a classifier for each set of training samples and each strength.

    Minimizes strength * (sum of the losses of the training samples) + |weights|^2 / 2, as
    scikit-learn's LogisticRegression(C) does. The bias is not penalized. With two classes there is
    one weight vector; with more there is one per class.

    Args:
      x_NxD: float32 samples.
      labels_N: class indices, starting at 0.
      train_UxN: bool, training samples of each fit.
      strengths_A: inverse regularization strengths, scikit-learn's C.
      classes: number of classes.
    """
    centered_NxD = x_NxD - x_NxD.mean(axis=0, dtype=np.float64)  # the bias absorbs the mean
    spectrum_D, basis_DxD = np.linalg.eigh(centered_NxD.T @ centered_NxD)
    ones_Nx1 = np.ones((len(x_NxD), 1))
    a_NxE = np.concatenate([centered_NxD @ basis_DxD, ones_Nx1], axis=1).astype(np.float32)
    spectrum_E = np.append(np.maximum(spectrum_D, 0), len(x_NxD)).astype(np.float32)
    predicted_NxUxA, steps, converged = _fit_all(
        a_NxE,
        spectrum_E,
        labels_N.astype(np.int32),
        train_UxN,
        np.asarray(strengths_A, np.float32),
        classes,
    )
    return LogisticFits(
        np.moveaxis(np.asarray(predicted_NxUxA), 0, -1), int(steps), bool(converged)
    )


class _NesterovState(NamedTuple):
    """State of Nesterov's method, for K weight vectors of size E per fit.

    Attributes:
      w_ExUxAxY: float32, current weights.
      y_ExUxAxY: float32, point at which the next gradient is computed.
      t_UxA: float32, momentum parameter of each fit.
      gain_UxA: float32, bound on the decrease of the objective in the last step.
      step: int32, number of steps so far.
    """

    w_ExUxAxY: jax.Array
    y_ExUxAxY: jax.Array
    t_UxA: jax.Array
    gain_UxA: jax.Array
    step: jax.Array


@partial(jax.jit, static_argnames='classes')
def _fit_all(a_NxE, spectrum_E, labels_N, train_UxN, strengths_A, classes):
    # Number of weight vectors, and Böhning's bound on the Hessian of the loss.
    columns, bound = (1, 1 / 4) if classes == 2 else (classes, 1 / 2)
    penalty_E = jnp.ones_like(spectrum_E).at[-1].set(0)
    curvature_ExAx1 = (bound * strengths_A * spectrum_E[:, None] + penalty_E[:, None])[..., None]
    curvature_ExUxAxY = curvature_ExAx1[:, None]
    target_NxY = jax.nn.one_hot(labels_N, classes)[:, -columns:]
    product = partial(jnp.einsum, precision='highest', preferred_element_type=jnp.float32)
    # The loss of a training sample at zero weights is log 2 with two classes.
    enough_UxA = TOLERANCE * np.log(2) * strengths_A * train_UxN.sum(1)[:, None]

    def compute_gradient(w_ExUxAxY):
        logits_NxUxAxY = product('ne,euay->nuay', a_NxE, w_ExUxAxY)
        if columns == 1:
            p_NxUxAxY = jax.nn.sigmoid(logits_NxUxAxY)
        else:
            p_NxUxAxY = jax.nn.softmax(logits_NxUxAxY)
        error_NxUxAxY = (p_NxUxAxY - target_NxY[:, None, None]) * train_UxN.T[:, :, None, None]
        loss_ExUxAxY = strengths_A[:, None] * product('ne,nuay->euay', a_NxE, error_NxUxAxY)
        return loss_ExUxAxY + penalty_E[:, None, None, None] * w_ExUxAxY

    def take_step(state: _NesterovState) -> _NesterovState:
        """Takes a step of Nesterov's method. The momentum of a fit is reset when it points uphill
        (O'Donoghue and Candès, 2015).
        """
        gradient_ExUxAxY = compute_gradient(state.y_ExUxAxY)
        w_ExUxAxY = state.y_ExUxAxY - gradient_ExUxAxY / curvature_ExUxAxY
        moved_ExUxAxY = w_ExUxAxY - state.w_ExUxAxY
        uphill_UxA = (gradient_ExUxAxY * moved_ExUxAxY).sum((0, 3)) > 0
        t_UxA = jnp.where(uphill_UxA, 1.0, (1 + jnp.sqrt(1 + 4 * state.t_UxA**2)) / 2)
        momentum_UxA = jnp.where(uphill_UxA, 0.0, (state.t_UxA - 1) / t_UxA)
        gain_UxA = (gradient_ExUxAxY**2 / curvature_ExUxAxY).sum((0, 3)) / 2
        return _NesterovState(
            w_ExUxAxY,
            w_ExUxAxY + momentum_UxA[..., None] * moved_ExUxAxY,
            t_UxA,
            gain_UxA,
            state.step + 1,
        )

    zero_ExUxAxY = jnp.zeros((len(spectrum_E), len(train_UxN), len(strengths_A), columns))
    ones_UxA = jnp.ones(zero_ExUxAxY.shape[1:3])
    first = _NesterovState(zero_ExUxAxY, zero_ExUxAxY, ones_UxA, ones_UxA * jnp.inf, jnp.int32(0))
    last = jax.lax.while_loop(
        lambda state: (state.gain_UxA > enough_UxA).any() & (state.step < MAX_STEPS),
        take_step,
        first,
    )
    logits_NxUxAxY = product('ne,euay->nuay', a_NxE, last.w_ExUxAxY)
    if columns == 1:
        predicted_NxUxA = (logits_NxUxAxY[..., 0] > 0).astype(jnp.int32)
    else:
        predicted_NxUxA = logits_NxUxAxY.argmax(-1).astype(jnp.int32)
    return predicted_NxUxA, last.step, (last.gain_UxA <= enough_UxA).all()
