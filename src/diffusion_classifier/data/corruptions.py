"""Corruptions that simulate a distribution shift: noise, blur, contrast and others, in five severities.

They follow Hendrycks and Dietterich (2019), "Benchmarking neural network robustness to common corruptions and
perturbations". Lengths are fractions of the image's edge, so that small images change as much as large ones. The same
image is changed in the same way at every call.

Internally, images are float arrays (H, W, 3) in [0, 1].
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from ..errors import InputError
from .images import ImageError, ImageSource, load_image
from .labelled import LabelledSource

Array = NDArray[Any]
SEVERITIES = 5


def _gaussian_noise(x: Array, size: float, rng: np.random.Generator) -> Array:
    return x + size * rng.standard_normal(x.shape[:2])[..., None]


def _shot_noise(x: Array, photons: float, rng: np.random.Generator) -> Array:
    seed = int(rng.integers(2**63))  # the same for all channels, so that grey stays grey
    planes = [np.random.default_rng(seed).poisson(np.clip(x[..., c], 0, 1) * photons) for c in range(3)]
    return np.stack(planes, axis=-1) / photons


def _impulse_noise(x: Array, share: float, rng: np.random.Generator) -> Array:
    u = rng.random(x.shape[:2])[..., None]
    return np.where(u < share / 2, 0.0, np.where(u < share, 1.0, x))


def _gaussian_blur(x: Array, size: float, _: np.random.Generator) -> Array:
    sigma = size * _edge(x)
    blurred: Array = ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest")
    return blurred


def _motion_blur(x: Array, size: float, rng: np.random.Generator) -> Array:
    angle, length = rng.uniform(0, np.pi), size * _edge(x)
    way = np.array([np.sin(angle), np.cos(angle), 0])
    moved = [ndimage.shift(x, way * d, order=1, mode="nearest") for d in np.linspace(-length / 2, length / 2, 9)]
    mean: Array = np.mean(moved, axis=0)
    return mean


def _contrast(x: Array, share: float, _: np.random.Generator) -> Array:
    mean: Array = x.mean((0, 1))
    return mean + share * (x - mean)


def _brightness(x: Array, size: float, _: np.random.Generator) -> Array:
    return x + size


def _inversion(x: Array, share: float, _: np.random.Generator) -> Array:
    return x + share * (1 - 2 * x)


def _occlusion(x: Array, size: float, rng: np.random.Generator) -> Array:
    edge = max(1, round(size * _edge(x)))
    top, left = (int(rng.integers(0, n - edge + 1)) for n in x.shape[:2])
    x = x.copy()
    x[top : top + edge, left : left + edge] = 0.5
    return x


def _rotation(x: Array, degrees: float, rng: np.random.Generator) -> Array:
    angle = np.radians(degrees) * rng.choice((-1, 1))
    return _moved(x, np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]))


def _shear(x: Array, size: float, rng: np.random.Generator) -> Array:
    return _moved(x, np.array([[1, 0], [size * rng.choice((-1, 1)), 1]]))


def _moved(x: Array, matrix: Array) -> Array:
    """Apply a linear map about the centre; pixels from beyond the edge take the edge's values."""
    middle = (np.array(x.shape[:2]) - 1) / 2
    offset = middle - matrix @ middle
    planes = [ndimage.affine_transform(x[..., c], matrix, offset, order=1, mode="nearest") for c in range(3)]
    return np.stack(planes, axis=-1)


def _jpeg(x: Array, quality: float, _: np.random.Generator) -> Array:
    file = io.BytesIO()
    _to_image(x).save(file, "JPEG", quality=int(quality))
    return _to_array(Image.open(file))


def _resolution(x: Array, share: float, _: np.random.Generator) -> Array:
    image = _to_image(x)
    small = image.resize([max(1, round(share * n)) for n in image.size], Image.Resampling.BOX)
    return _to_array(small.resize(image.size, Image.Resampling.BILINEAR))


def _background(x: Array, size: float, rng: np.random.Generator) -> Array:
    """Draw clouds wherever the image is darker than they are: for objects on black."""
    sigma = 0.08 * _edge(x)
    clouds = ndimage.gaussian_filter(rng.standard_normal(x.shape[:2]), sigma, mode="wrap")
    clouds = (clouds - clouds.min()) / max(float(np.ptp(clouds)), 1e-12)
    lighter: Array = np.maximum(x, size * clouds[..., None])
    return lighter


CORRUPTIONS: dict[str, tuple[Callable[[Array, float, np.random.Generator], Array], tuple[float, ...]]] = {
    "gaussian-noise": (_gaussian_noise, (0.04, 0.08, 0.15, 0.25, 0.4)),
    "shot-noise": (_shot_noise, (60, 25, 12, 6, 3)),
    "impulse-noise": (_impulse_noise, (0.01, 0.03, 0.06, 0.12, 0.2)),
    "gaussian-blur": (_gaussian_blur, (0.01, 0.02, 0.03, 0.045, 0.06)),
    "motion-blur": (_motion_blur, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, (0.75, 0.5, 0.35, 0.2, 0.1)),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "inversion": (_inversion, (0.2, 0.4, 0.6, 0.8, 1.0)),
    "occlusion": (_occlusion, (0.2, 0.3, 0.4, 0.5, 0.6)),
    "rotation": (_rotation, (10, 20, 30, 45, 60)),
    "shear": (_shear, (0.1, 0.2, 0.3, 0.45, 0.6)),
    "jpeg": (_jpeg, (50, 30, 18, 10, 5)),
    "resolution": (_resolution, (0.8, 0.6, 0.45, 0.35, 0.25)),
    "background": (_background, (0.1, 0.2, 0.3, 0.45, 0.6)),
}
"""Name → function, and its amount at each of the five severities."""


@dataclass(frozen=True)
class Corruption:
    """A corruption at one severity.

    Args:
        name: Key of `CORRUPTIONS`.
        severity: 1 to 5.

    Raises:
        InputError: Unknown name or severity.
    """

    name: str
    severity: int

    def __post_init__(self) -> None:
        if self.name not in CORRUPTIONS or not 1 <= self.severity <= SEVERITIES:
            raise _unknown(str(self))

    @classmethod
    def parse(cls, text: str) -> Corruption:
        """Parse text such as "gaussian-noise:3".

        Raises:
            InputError: The text has another form, or an unknown name or severity.
        """
        found = re.fullmatch(r"([\w-]+):(\d{1,3})", text)
        if found is None:
            raise _unknown(text)
        return cls(found[1], int(found[2]))

    def __str__(self) -> str:
        return f"{self.name}:{self.severity}"

    def __call__(self, image: Image.Image, key: str) -> Image.Image:
        """Return the corrupted image, in mode RGB.

        Args:
            image: Image in any mode.
            key: Seed of the random numbers, together with the name of the corruption.
        """
        change, amounts = CORRUPTIONS[self.name]
        seed = int.from_bytes(hashlib.sha256(f"{self.name} {key}".encode()).digest()[:8])
        return _to_image(change(_to_array(image), amounts[self.severity - 1], np.random.default_rng(seed)))


def _unknown(text: str) -> InputError:
    known = ", ".join(CORRUPTIONS)
    return InputError(
        f"a corruption is a name and a severity from 1 to {SEVERITIES}, as jpeg:3, of {known}; got {text}"
    )


def corrupted(source: LabelledSource, corruption: Corruption) -> LabelledSource:
    """Return the source with its images corrupted as they are read; a broken image is passed on unchanged."""

    def read(i: int) -> ImageSource:
        content = source.read(i)
        try:
            picture = load_image(content, source.ids[i])
            return replace(picture, image=corruption(picture.image, source.ids[i]))
        except ImageError:
            return content

    return replace(source, name=f"{source.name}, {corruption}", read=read, shift=str(corruption))


def _edge(x: Array) -> int:
    return min(len(x), len(x[0]))


def _to_array(image: Image.Image) -> Array:
    return np.asarray(image.convert("RGB"), np.float64) / 255


def _to_image(x: Array) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8))
