"""Images for training, with labels or with captions: folders, a `datasets` id or path, or a folder of IDX files."""

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
    """A data set in memory, and how some of it is held out."""

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
        """Those at the rows (n,), int64."""
        raise NotImplementedError


@dataclass(frozen=True)
class TrainingImages(_Images):
    """Images of classes.

    Args:
        images: (N, C, S, S), uint8, C = 1 or 3.
        labels: (N,), int64, indices into class_names.
        class_names: one per class.
        posteriors: (N, K), float32, of a teacher, which are learned in place of the labels; or none.
        notes: See `LabelledSource`.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    posteriors: Tensor | None = None
    notes: tuple[str, ...] = ()

    @property
    def targets(self) -> Tensor:
        """What is learned: posteriors, or labels."""
        return self.labels if self.posteriors is None else self.posteriors

    def fingerprint(self) -> str:
        """SHA-256 of images and targets, for a model card and for refusing to resume on other data."""
        digest = hashlib.sha256(np.ascontiguousarray(self.images.numpy()).data)
        digest.update(self.targets.numpy().tobytes())
        return digest.hexdigest()

    def take(self, rows: Tensor) -> TrainingImages:
        """See `_Images`."""
        posteriors = None if self.posteriors is None else self.posteriors[rows]
        return TrainingImages(self.images[rows], self.labels[rows], self.class_names, posteriors, self.notes)


@dataclass(frozen=True)
class TrainingCaptions(_Images):
    """Images with a text each.

    Args:
        images: (N, C, S, S), uint8, C = 1 or 3.
        captions: N.
        contrasts: false captions of each image; none of any if ().
        notes: See `LabelledSource`.
    """

    images: Tensor
    captions: tuple[str, ...]
    contrasts: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """SHA-256 of images and captions."""
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
    """Images and labels of a data set, brought to one size.

    Args:
        source: See `open_labelled`.
        split: "train" or "test"; for IDX files, `train-…` and `t10k-…`.
        size: height and width; the images' own if None, which must then be one and square.
        class_names: replaces the data set's own names, one for each; IDX files have none.
        image_column: where the images are; the only image column if None.
        label_column: where the labels are; the only class-label column if None.
        crop: how images are brought to that size; see `images.preprocess`.
        allow_incomplete: See `open_labelled`.

    Raises:
        InputError: the data cannot be read as labelled images, or has names of classes that `evaluate` would not take;
            a broken image is named.
    """
    found = open_labelled(
        source, split=split, image_column=image_column, label_column=label_column, class_names=class_names,
        allow_incomplete=allow_incomplete,
    ).check_labelled()  # fmt: skip
    parse_labels(found.class_names)  # before hours of training, and not after them
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
    """Images and captions of a data set, brought to one size; see `open_texts` for the arguments.

    Raises:
        InputError: the data cannot be read as captioned images; a broken image is named.
    """
    found = open_texts(
        source, split=split, image_column=image_column, caption_column=caption_column,
        allow_incomplete=allow_incomplete,
    )  # fmt: skip
    images, notes = decode(found, size)
    return TrainingCaptions(images, found.captions, notes=found.notes + notes)


def load_contrasted_images(source: CaptionedSource, size: int | None = None) -> TrainingCaptions:
    """Images with a true caption and false ones, brought to one size.

    Raises:
        InputError: a broken image, which is named.
    """
    own = zip(source.captions, source.truth, strict=True)
    captions, contrasts = zip(*((c[truth], (*c[:truth], *c[truth + 1 :])) for c, truth in own), strict=True)
    images, notes = decode(source, size)
    return TrainingCaptions(images, captions, contrasts, source.notes + notes)


def decode(
    source: LabelledSource | TextSource | CaptionedSource, size: int | None, crop: Crop = "center"
) -> tuple[Tensor, tuple[str, ...]]:
    """Decode all images: (N, C, S, S), uint8, C being 1 if all are grey; and a note if Pillow warned of some.

    Raises:
        InputError: a broken image, which is named; images of several sizes, where none is given.
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
            images = pixels.new_empty(len(source), *pixels.shape)  # once, since there may be many
        if pixels.shape != images.shape[1:]:
            raise InputError(f"{name} differs in size from the images before it: give a size, to which all are brought")
        images[i] = pixels
        grey = grey and bool((pixels == pixels[:1]).all())
    notes = (f"Pillow warned of {len(warned)} of {len(source)} images, such as {warned[0]}",) if warned else ()
    return images[:, :1].contiguous() if grey else images, notes


def _to_pixels(image: Image, size: int | None, name: str, crop: Crop) -> Tensor:
    """(3, S, S), uint8."""
    if size is None:
        if image.width != image.height:
            raise InputError(f"{name} is {image.width}×{image.height}: give a size, to which all images are brought")
        size = image.width
    return ((preprocess(image, size, crop=crop) + 1) * 127.5).round().to(torch.uint8)
