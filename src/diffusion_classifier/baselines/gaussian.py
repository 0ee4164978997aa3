"""The fast generative classifier: a Gaussian for each class in the space of features (Lee et al. 2018).

Fitted to images that a diffusion model drew, or to any others of known classes; the nearest mean by Mahalanobis
distance wins. All classes share one covariance, so that the classifier is linear: Fisher's discriminant.

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
from .features import Features, Gaussians, build_head
from .hub import FEATURES

_AT_ONCE = 64
"""Images that are encoded together."""


def mean_features(
    encoder: Encoder, source: LabelledSource, on_image: Callable[[int], None] = lambda _: None
) -> NDArray[np.float64]:
    """Features (M, C) of images, averaged over the map.

    Raises:
        InputError: a broken image, which is named.
    """
    parts = []
    for start in range(0, len(source), _AT_ONCE):
        rows = range(start, min(start + _AT_ONCE, len(source)))
        found = encoder([load_image(source.read(i), source.ids[i]).image for i in rows])
        parts.append(found.mean((2, 3)).double().cpu().numpy())
        on_image(rows.stop)
    return np.concatenate(parts)


def fit_gaussians(features: NDArray[np.float64], labels: NDArray[np.int64], num_classes: int) -> torch.nn.Module:
    """A head whose logits are half the negative squared Mahalanobis distances.

    Args:
        features: (M, C).
        labels: (M,), indices below K.
        num_classes: K.

    Raises:
        InputError: a class with fewer than two images; the library that fits is missing.
    """
    few = np.flatnonzero(np.bincount(labels, minlength=num_classes) < 2)
    if len(few):
        raise InputError(f"a Gaussian needs two images of each class; class {few[0]} of {num_classes} has fewer")
    try:
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    except ImportError as e:
        raise InputError("Gaussians need scikit-learn: pip install 'diffusion-classifier[gaussian]'") from e
    # The covariance is drawn towards a sphere as Ledoit and Wolf (2004) say, without which few images would not do.
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
        encoder: of images.
        model: what it is called, by which it will be found again.
        source: images of known classes.
        out: the folder, which must not be there, or be empty.
        on_image: called with the number of images that are encoded.

    Raises:
        InputError: as `mean_features` and `fit_gaussians`; the folder is not empty, or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there already: choose another --out, or remove it")
    found = mean_features(encoder, source.check_labelled(), on_image)
    head = fit_gaussians(found, np.array(source.labels), len(source.class_names)).to(encoder.device)
    fitted = Features(encoder, head, source.class_names)
    try:
        out.mkdir(parents=True, exist_ok=True)
        fitted.save(out, model, "gaussian", found.shape[1])
    except OSError as e:
        raise InputError(f"{out / FEATURES} cannot be written: {e}") from e
    return fitted
