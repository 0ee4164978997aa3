"""Fit timestep weights to labelled error tables.

Shape legend: M images, K classes, N draws, J knots.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Tensor

from ..diffusion.timestep_weights import Weights, read_weights
from ..errors import InputError

Array = NDArray[Any]
FOLDS = 5
PENALTIES = (0.001, 0.01, 0.1, 1.0, 1e6)
"""Candidate penalties, in nats, for a step of the average weight from one knot to the next."""


def folds(num_images: int) -> Iterator[Tensor]:
    """Yield five folds, each with every fifth image, as masks (M,).

    Raises:
        InputError: there are fewer than five images.
    """
    if num_images < FOLDS:
        raise InputError(f"cross-validation needs at least {FOLDS} images; got {num_images}")
    for fold in range(FOLDS):
        yield torch.arange(num_images) % FOLDS == fold


def by_knots(errors: Tensor, u: Tensor, num_knots: int) -> Tensor:
    """Return errors by knot, (M, K, J), whose sum with weights w_j is the weighted mean over draws, Σ_n w(u_n)·e_n / N.

    Args:
        errors: full tables, (M, K, N).
        u: timesteps of the draws as fractions of the schedule, (M, N).
        num_knots: J.
    """
    hats = (1 - (u.double()[..., None] * (num_knots - 1) - torch.arange(num_knots)).abs()).clamp(min=0)  # (M, N, J)
    return errors.double() @ hats / errors.shape[2]


def fit_weights(knots: Tensor, truth: Tensor, scale: float) -> Weights:
    """Return the weights that maximise the likelihood of the true classes under the posterior of equation 6.

    This is logistic regression with the weights as coefficients, a convex problem. Steps from knot to knot are
    penalised; the penalty is chosen from `PENALTIES` by cross-validation. The largest one gives uniform weights.

    Args:
        knots: errors by knot, see `by_knots`, (M, K, J).
        truth: true classes, (M,).
        scale: factor from mean errors to logits under uniform weights: dimensions / temperature.

    Returns:
        J numbers; uniform weights for fewer images than twice the number of folds.
    """
    if len(truth) < 2 * FOLDS:
        return (1.0,) * knots.shape[2]
    logits = -scale * (knots - knots.mean(1, keepdim=True)).numpy()
    labels = truth.numpy()
    parts = [held_out.numpy() for held_out in folds(len(labels))]

    def left_out(penalty: float) -> float:
        nats = 0.0
        for out in parts:
            fitted = _coefficients(logits[~out], labels[~out], penalty)
            nats += _nats(fitted, logits[out], labels[out])[0] * float(out.sum())
        return nats

    best = min(PENALTIES, key=left_out)
    return read_weights(_coefficients(logits, labels, best).tolist())


def _coefficients(logits: Array, labels: Array, penalty: float) -> Array:
    """Return the weights w (J,), at least 0, that minimise the penalised loss."""

    def loss(w: Array) -> tuple[float, Array]:
        value, gradient = _nats(w, logits, labels)
        steps = np.diff(w)
        inner = np.concatenate([[0], steps, [0]])
        return value + penalty * float(steps @ steps), gradient - 2 * penalty * np.diff(inner)

    start = np.ones(logits.shape[2])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(start)).x
    return np.asarray(found) if found.any() else start


def _nats(w: Array, logits: Array, labels: Array) -> tuple[float, Array]:
    """Return the mean cross-entropy of the true classes, and its gradient (J,)."""
    log_p = log_softmax(logits @ w, axis=1)
    rows = np.arange(len(labels))
    expected = np.einsum("mk,mkj->mj", np.exp(log_p), logits)
    return float(-log_p[rows, labels].mean()), (expected - logits[rows, labels]).mean(0)
