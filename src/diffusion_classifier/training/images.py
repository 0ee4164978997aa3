"""Training images with labels or captions, from folders, a `datasets` id or path, or a folder of IDX files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from ..data.captioned import CaptionedSource
from ..data.held_out import held_out_rows
from ..data.images import WARNED, Crop, load_image, preprocess
from ..data.labelled import LabelledSource, open_labelled
from ..data.prompts import parse_labels
from ..data.texts import TextSource, open_texts
from ..errors import InputError


class _Images:
    """A data set in memory, of which a part can be held out."""

    images: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def split(self, held_out: int, seed: int) -> tuple[Self, Self]:
        """Split into a random part for training and `held_out` others for validation; see `held_out_rows`."""
        rows = held_out_rows(len(self), held_out, seed)
        rest = torch.ones(len(self), dtype=torch.bool)
        rest[rows] = False
        return self.take(rest.nonzero().flatten()), self.take(rows)

    def take(self, rows: Tensor) -> Self:
        """Return the images at the rows (n,), int64."""
        raise NotImplementedError


@dataclass(frozen=True)
class TrainingImages(_Images):
    """Images with labels.

    Args:
        images: (N, C, S, S), uint8, C = 1 or 3.
        labels: (N,), int64, indices into class_names.
        class_names: one name per class.
        posteriors: (N, K), float32, posteriors of a teacher, which are the training targets instead of the labels.
        notes: as in `labelled.LabelledSource`.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    posteriors: Tensor | None = None
    notes: tuple[str, ...] = ()

    @property
    def targets(self) -> Tensor:
        """Training targets: posteriors, or labels."""
        return self.labels if self.posteriors is None else self.posteriors

    def fingerprint(self) -> str:
        """Return the SHA-256 of images and targets, which identifies the data of a run."""
        digest = hashlib.sha256(np.ascontiguousarray(self.images.numpy()).data)
        digest.update(self.targets.numpy().tobytes())
        return digest.hexdigest()

    def take(self, rows: Tensor) -> TrainingImages:
        """See `_Images`."""
        posteriors = None if self.posteriors is None else self.posteriors[rows]
        return TrainingImages(self.images[rows], self.labels[rows], self.class_names, posteriors, self.notes)


@dataclass(frozen=True)
class TrainingCaptions(_Images):
    """Images with captions.

    Args:
        images: (N, C, S, S), uint8, C = 1 or 3.
        captions: N captions.
        contrasts: false captions of each image. Empty if no image has any.
        notes: as in `labelled.LabelledSource`.
    """

    images: Tensor
    captions: tuple[str, ...]
    contrasts: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Return the SHA-256 of images and captions."""
        digest = hashlib.sha256(np.ascontiguousarray(self.images.numpy()).data)
        for captions in (self.captions, *self.contrasts):
            digest.update("\0".join(captions).encode())
        return digest.hexdigest()

    def take(self, rows: Tensor) -> TrainingCaptions:
        """See `_Images`."""
        chosen = rows.tolist()
        contrasts = tuple(self.contrasts[i] for i in chosen) if self.contrasts else ()
        return TrainingCaptions(self.images[rows], tuple(self.captions[i] for i in chosen), contrasts, self.notes)


def load_labelled_images(
    source: str,
    *,
    split: str = "train",
    size: int | None = None,
    class_names: Sequence[str] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    crop: Crop = "center",
    allow_incomplete: bool = False,
) -> TrainingImages:
    """Load images and labels of a data set, and resize the images to one size.

    Args:
        source: as in `labelled.open_labelled`.
        split: "train" or "test". For IDX files these are `train-…` and `t10k-…`.
        size: height and width. Default: the images' own size, which must be square and the same for all.
        class_names: one name per class, which replace those of the data set. IDX files have no names.
        image_column: column of the images. Default: the only image column.
        label_column: column of the labels. Default: the only class-label column.
        crop: how images are resized; see `images.preprocess`.
        allow_incomplete: as in `labelled.open_labelled`.

    Raises:
        InputError: the data cannot be read as labelled images, or has class names that `evaluate` would reject. The
            message names a broken image.
    """
    found = open_labelled(
        source, split=split, image_column=image_column, label_column=label_column, class_names=class_names,
        allow_incomplete=allow_incomplete,
    ).check_labelled()  # fmt: skip
    parse_labels(found.class_names)  # before hours of training, not after them
    labels = torch.tensor(found.labels)
    if bool((labels == labels[0]).all()):
        raise InputError(f"all images of {source} are of one class; at least two are needed to train a classifier")
    notes, occurring = found.notes, set(found.labels)
    if lacking := [name for i, name in enumerate(found.class_names) if i not in occurring]:
        notes += (f"{len(lacking)} classes of {source} have no training image, such as {lacking[0]!r}",)
    images, more = decode(found, size, crop)
    return TrainingImages(images, labels, found.class_names, notes=notes + more)


def load_captioned_images(
    source: str,
    *,
    split: str = "train",
    size: int | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    allow_incomplete: bool = False,
) -> TrainingCaptions:
    """Load images and captions of a data set, and resize the images to one size.

    Arguments are those of `load_labelled_images` and `labelled.open_texts`.

    Raises:
        InputError: the data cannot be read as captioned images. The message names a broken image.
    """
    found = open_texts(
        source, split=split, image_column=image_column, caption_column=caption_column,
        allow_incomplete=allow_incomplete,
    )  # fmt: skip
    images, notes = decode(found, size)
    return TrainingCaptions(images, found.captions, notes=found.notes + notes)


def load_contrasted_images(source: CaptionedSource, size: int | None = None) -> TrainingCaptions:
    """Load images with a true caption and false ones, and resize the images to one size.

    Raises:
        InputError: names a broken image.
    """
    own = zip(source.captions, source.truth, strict=True)
    captions, contrasts = zip(*((c[truth], (*c[:truth], *c[truth + 1 :])) for c, truth in own), strict=True)
    images, notes = decode(source, size)
    return TrainingCaptions(images, captions, contrasts, source.notes + notes)


def decode(
    source: LabelledSource | TextSource | CaptionedSource, size: int | None, crop: Crop = "center"
) -> tuple[Tensor, tuple[str, ...]]:
    """Decode images to (N, C, S, S), uint8, C being 1 if all are grey; and a note if Pillow warned of some.

    Raises:
        InputError: names a broken image; or images have several sizes, and `size` is None.
    """
    first = source.read(0)
    if isinstance(first, np.ndarray) and first.ndim == 2 and first.shape == (size or first.shape[0],) * 2:  # IDX files
        return torch.from_numpy(np.stack([source.read(i) for i in range(len(source))]))[:, None], ()  # type: ignore[misc]
    images, grey = torch.empty(0), True
    warned: list[str] = []
    for i in range(len(source)):
        content = source.read(i)
        name = str(content) if isinstance(content, str | Path) else f"{source.name}[{i}]"
        picture = load_image(content, name)
        warned += [f"{name}: {note.removeprefix(WARNED)}" for note in picture.notes if note.startswith(WARNED)][:1]
        pixels = _to_pixels(picture.image, size, name, crop)
        if i == 0:
            images = pixels.new_empty(len(source), *pixels.shape)  # allocated once, because there may be many images
        if pixels.shape != images.shape[1:]:
            raise InputError(f"{name} differs in size from the images before it: give a size, to which all are brought")
        images[i] = pixels
        grey = grey and bool((pixels == pixels[:1]).all())
    notes = (f"Pillow warned of {len(warned)} of {len(source)} images, such as {warned[0]}",) if warned else ()
    return images[:, :1].contiguous() if grey else images, notes


def _to_pixels(image: Image, size: int | None, name: str, crop: Crop) -> Tensor:
    """Return the pixels (3, S, S), uint8."""
    if size is None:
        if image.width != image.height:
            raise InputError(f"{name} is {image.width}×{image.height}: give a size, to which all images are brought")
        size = image.width
    return ((preprocess(image, size, crop=crop) + 1) * 127.5).round().to(torch.uint8)
