"""A fast generative classifier: one Gaussian per class in feature space (Lee et al. 2018).

The Gaussians are fitted to labelled images, which a diffusion model may have generated. The prediction is the class
with the nearest mean by Mahalanobis distance. All classes share one covariance, so that the classifier is linear:
Fisher's discriminant.

Shape legend: M images, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.images import load_image
from ..data.labelled import LabelledSource
from ..errors import InputError
from .encoders import Encoder
from .features import FEATURES, Features, Gaussians, build_head

_AT_ONCE = 64
"""Images per batch of the encoder."""


def mean_features(
    encoder: Encoder, source: LabelledSource, on_image: Callable[[int], None] = lambda _: None
) -> NDArray[np.float64]:
    """Return features (M, C) of images, averaged over the map.

    Raises:
        InputError: an image is broken; the message names it.
    """
    parts = []
    for start in range(0, len(source), _AT_ONCE):
        rows = range(start, min(start + _AT_ONCE, len(source)))
        found = encoder([load_image(source.read(i), source.ids[i]).image for i in rows])
        parts.append(found.mean((2, 3)).double().cpu().numpy())
        on_image(rows.stop)
    return np.concatenate(parts)


def fit_gaussians(features: NDArray[np.float64], labels: NDArray[np.int64], num_classes: int) -> torch.nn.Module:
    """Fit a head whose logits are half the negative squared Mahalanobis distances.

    Args:
        features: (M, C).
        labels: (M,), indices below K.
        num_classes: K.

    Raises:
        InputError: a class has fewer than two images, or scikit-learn is missing.
    """
    few = np.flatnonzero(np.bincount(labels, minlength=num_classes) < 2)
    if len(few):
        raise InputError(f"a Gaussian needs two images of each class; class {few[0]} of {num_classes} has fewer")
    try:
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    except ImportError as e:
        raise InputError("Gaussians need scikit-learn: pip install 'diffusion-classifier[gaussian]'") from e
    # Shrinkage of the covariance (Ledoit and Wolf 2004) makes it invertible when there are few images.
    fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=np.full(num_classes, 1 / num_classes))
    fitted.fit(features, labels)
    head = build_head("gaussian", features.shape[1], num_classes)
    gaussians = Gaussians(torch.from_numpy(fitted.means_), torch.from_numpy(fitted.covariance_))
    head[-1].load_state_dict(gaussians.state_dict())  # type: ignore[index]
    return head


def save_gaussians(
    encoder: Encoder, model: str, source: LabelledSource, out: Path, on_image: Callable[[int], None] = lambda _: None
) -> Features:
    """Fit Gaussians to the features of a data set, and save them to a folder that `Features` loads.

    Args:
        encoder: encoder from images to features.
        model: name of the encoder, by which `Features` loads it again.
        source: labelled images.
        out: the folder, which must be new or empty.
        on_image: called with the number of images encoded so far.

    Raises:
        InputError: as in `mean_features` and `fit_gaussians`, or the folder is not empty or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} already exists: choose another --out, or remove it")
    found = mean_features(encoder, source.check_labelled(), on_image)
    head = fit_gaussians(found, np.array(source.labels), len(source.class_names)).to(encoder.device)
    fitted = Features(encoder, head, source.class_names)
    try:
        out.mkdir(parents=True, exist_ok=True)
        fitted.save(out, model, "gaussian", found.shape[1])
    except OSError as e:
        raise InputError(f"{out / FEATURES} cannot be written: {e}") from e
    return fitted
