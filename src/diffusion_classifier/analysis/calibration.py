"""What a calibration fitted, as a picture: weights over time, and how often answers of each score are right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..calibration import Calibration
from ..exceptions import InputError
from ..metrics import share_interval
from .figures import pyplot, save

NUM_BINS = 10


def draw_calibration(calibration: Calibration, file: Path) -> None:
    """Weights on all images, thick, and on each fold's complement, thin; and a reliability diagram.

    Raises:
        InputError: true labels are not known, so that nothing of this was fitted.
    """
    if calibration.gain is None or calibration.fitted_weights is None:
        raise InputError("without true labels neither weights nor scores are fitted: there is nothing to draw")
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    left.axhline(1, color="gray", lw=1, ls=":", label="uniform")
    for i, weights in enumerate(calibration.fold_weights):
        label = "fitted on four fifths of the images" if i == 0 else None
        left.plot(np.linspace(0, 1, len(weights)), weights, color="C0", lw=0.8, alpha=0.5, label=label)
    weights = calibration.fitted_weights
    left.plot(np.linspace(0, 1, len(weights)), weights, "o-", color="C0", ms=4, label="on all")
    gain, low, high = calibration.gain
    used = "used" if calibration.defaults.weights else "not used"
    left.set(
        xlabel="time t/T: no noise to pure noise",
        ylabel="weight w(t)",
        ylim=(0, None),
        title=f"accuracy {gain:+.1%} ({low:+.1%} to {high:+.1%}): {used}",
    )
    left.legend(fontsize=8)

    scores, hits = (torch.tensor(values) for values in zip(*calibration.answers, strict=True))
    bins = (scores * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1
    right.plot([0, 1], [0, 1], color="gray", lw=1, ls=":")
    for b in sorted(set(bins.tolist())):
        share, low, high = share_interval(hits[bins == b])
        x = float(scores[bins == b].mean())
        right.plot([x, x], [low, high], color="C1", lw=1.2)
        right.plot(x, share, "o", color="C1", ms=3 + 9 * float((bins == b).double().mean()) ** 0.5)
    right.set(
        xlabel="score of the answer",
        ylabel="share that is right, with 95 % interval",
        xlim=(0, 1.02),
        ylim=(0, 1.02),
        title=f"calibration error {calibration.calibration_error:.3f}",
    )
    figure.suptitle(f"{calibration.num_images} images, cross-validated", fontsize=10)
    save(figure, file)
