"""Figures of a calibration: fitted timestep weights and a reliability diagram."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..metrics import share_interval
from .calibration import Calibration
from .plotting import pyplot, save

NUM_BINS = 10


def draw_calibration(calibration: Calibration, file: Path) -> None:
    """Draw the fitted timestep weights, on all images and on the complement of each fold, and a reliability diagram.

    Raises:
        InputError: true labels are unknown, so neither weights nor probabilities were fitted.
    """
    if calibration.gain is None or calibration.fitted_weights is None:
        raise InputError("without true labels neither weights nor probabilities are fitted: there is nothing to draw")
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    left.axhline(1, color="gray", lw=1, ls=":", label="uniform")
    for i, weights in enumerate(calibration.fold_weights):
        label = "fitted on four fifths of the images" if i == 0 else None
        left.plot(np.linspace(0, 1, len(weights)), weights, color="C0", lw=0.8, alpha=0.5, label=label)
    weights = calibration.fitted_weights
    left.plot(np.linspace(0, 1, len(weights)), weights, "o-", color="C0", ms=4, label="fitted on all images")
    used = "used" if calibration.gains else "not used"
    left.set(
        xlabel="timestep t/T (0: no noise, 1: pure noise)",
        ylabel="weight w(t)",
        ylim=(0, None),
        title=f"accuracy {calibration.gain.points()}: {used}",
    )
    left.legend(fontsize=8)

    scores, hits = (np.array(values) for values in zip(*calibration.predictions, strict=True))
    draw_reliability(right, scores, hits)
    right.set_title(f"expected calibration error {calibration.calibration_error:.3f}")
    figure.suptitle(f"{calibration.num_images} images, cross-validated", fontsize=10)
    save(figure, file)


def draw_reliability(axes: Any, scores: NDArray[np.float64], correct: NDArray[np.bool_]) -> None:
    """Draw a reliability diagram: accuracy against the probability of the prediction; larger dots for more images.

    Args:
        axes: of matplotlib.
        scores: probability of each prediction, (M,).
        correct: whether each prediction is correct, (M,).
    """
    bins = np.ceil(scores * NUM_BINS).astype(int).clip(1, NUM_BINS) - 1
    axes.plot([0, 1], [0, 1], color="gray", lw=1, ls=":")
    for b in sorted(set(bins.tolist())):
        inside = bins == b
        share, low, high = share_interval(torch.from_numpy(correct[inside]))
        x = float(scores[inside].mean())
        axes.plot([x, x], [low, high], color="C1", lw=1.2)
        axes.plot(x, share, "o", color="C1", ms=3 + 9 * float(inside.mean()) ** 0.5)
    axes.set(
        xlabel="probability of the prediction",
        ylabel="accuracy, with 95% interval",
        xlim=(0, 1.02),
        ylim=(0, 1.02),
    )
