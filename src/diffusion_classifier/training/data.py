"""Labelled images for training: an image folder, a `datasets` id or path, or a folder of IDX files."""

from __future__ import annotations

import gzip
import hashlib
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..exceptions import InputError
from ..images import ImageSource, load_image, preprocess
from ..prompts import parse_labels


@dataclass(frozen=True)
class LabelledImages:
    """A data set in memory.

    Args:
        images: (N, C, S, S), uint8, C = 1 or 3.
        labels: (N,), int64, indices into class_names.
        class_names: one per class.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self) -> str:
        """SHA-256 of images and labels, for a model card and for refusing to resume on other data."""
        digest = hashlib.sha256(self.images.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()

    def split(self, held_out: int, seed: int) -> tuple[LabelledImages, LabelledImages]:
        """A random part for training, and the `held_out` others for validation.

        Raises:
            InputError: nothing would be left to train on.
        """
        if not 0 <= held_out < len(self):
            raise InputError(f"{held_out} images cannot be held out of {len(self)}: some must be left to train on")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        rest, held = order[held_out:].sort().values, order[:held_out].sort().values
        return self._pick(rest), self._pick(held)

    def _pick(self, rows: Tensor) -> LabelledImages:
        return LabelledImages(self.images[rows], self.labels[rows], self.class_names)


def load_labelled_images(
    source: str,
    *,
    split: str = "train",
    size: int | None = None,
    class_names: Sequence[str] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> LabelledImages:
    """Images and labels of a data set, brought to one size.

    Args:
        source: a folder of IDX files; a folder with one sub-folder of images per class; or what
            `datasets.load_dataset` reads: a hub id, a folder of Parquet files.
        split: "train" or "test"; for IDX files, `train-…` and `t10k-…`.
        size: height and width; the images' own if None, which must then be one and square.
        class_names: replaces the data set's own names, one for each; IDX files have none.
        image_column: where the images are; the only image column if None.
        label_column: where the labels are; the only class-label column if None.

    Raises:
        InputError: the data cannot be read as labelled images; a broken image is named.
    """
    folder = Path(source)
    if folder.is_dir() and any(folder.glob("*-ubyte*")):
        images, labels, names = _read_idx_folder(folder, split)
        if size not in (None, images.shape[-1]):
            images = torch.stack([_to_pixels(image, size, f"{source}[{i}]", 1) for i, image in enumerate(images)])
    else:
        images, labels, names = _read_dataset(source, split, size, image_column, label_column)
    if class_names is not None:
        if len(class_names) != len(names):
            raise InputError(f"{len(class_names)} class names were given for the {len(names)} classes of {source}")
        names = tuple(parse_labels(class_names))
    if bool((labels == labels[0]).all()):
        raise InputError(f"all images of {source} are of one class; at least two are needed to train a classifier")
    return LabelledImages(images, labels, names)


def _read_idx(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The array of an IDX file, plain or gzipped: two zero bytes, type, rank, sizes in big endian, values."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, kind, rank = struct.unpack_from(">HBB", data)
        if zeros != 0 or kind != 8:
            raise ValueError("not an IDX file of unsigned bytes")
        shape = struct.unpack_from(f">{rank}I", data, 4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as e:
        raise InputError(f"{path} cannot be read as IDX: {e}") from e


def _read_idx_folder(folder: Path, split: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    prefix = {"train": "train", "test": "t10k"}.get(split, split)
    arrays = []
    for part in ("images-idx3", "labels-idx1"):
        found = sorted(folder.glob(f"{prefix}-{part}-ubyte*"))
        if not found:
            raise InputError(f"{folder} has no file {prefix}-{part}-ubyte or {prefix}-{part}-ubyte.gz")
        arrays.append(_read_idx(found[0]))
    images, labels = arrays
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or images.size == 0:
        raise InputError(f"{folder}: images {images.shape} and labels {labels.shape} do not belong together")
    if images.shape[1] != images.shape[2]:
        raise InputError(f"{folder}: images of {images.shape[2]}×{images.shape[1]} are not square")
    names = tuple(str(i) for i in range(int(labels.max()) + 1))
    return torch.from_numpy(images.copy())[:, None], torch.from_numpy(labels.astype(np.int64)), names


def _to_pixels(source: ImageSource | bytes, size: int | None, name: str, channels: int) -> Tensor:
    """(C, S, S), uint8."""
    image = load_image(source, name=name).image
    if size is None:
        if image.width != image.height:
            raise InputError(f"{name} is {image.width}×{image.height}: give a size, to which all images are brought")
        size = image.width
    pixels = ((preprocess(image, size) + 1) * 127.5).round().to(torch.uint8)
    return pixels[:channels]


def _read_dataset(
    source: str, split: str, size: int | None, image_column: str | None, label_column: str | None
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    import datasets

    folder = Path(source)
    if not folder.is_dir() and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source):
        raise InputError(f"there is no folder {source}, and the name of a data set it cannot be")
    has_images_alone = folder.is_dir() and not any(folder.glob("**/*.parquet"))
    try:
        if has_images_alone:
            table = datasets.load_dataset("imagefolder", data_dir=source, split=split)
        else:
            table = datasets.load_dataset(source, split=split)
    except Exception as e:
        raise InputError(f"{source} cannot be read as a data set (split {split!r}): {e}") from e
    features = table.features
    if has_images_alone and list(features) == ["image"]:
        raise InputError(f"{source} must have at least two sub-folders, one a class, with images right in them")
    image_column = image_column or _only(features, datasets.Image, source, "image")
    label_column = label_column or _only(features, datasets.ClassLabel, source, "label")
    for column in (image_column, label_column):
        if column not in features:
            raise InputError(f"{source} has no column {column!r}; it has {', '.join(features)}")
    if not isinstance(features[label_column], datasets.ClassLabel | datasets.Value):
        raise InputError(f"column {label_column!r} of {source} does not hold labels, but {features[label_column]}")
    try:
        raw = table.select_columns(image_column).cast_column(image_column, datasets.Image(decode=False))
    except Exception as e:
        raise InputError(f"column {image_column!r} of {source} cannot be read as images: {e}") from e
    images: list[Tensor] = []
    for i, row in enumerate(raw):
        item = row[image_column] or {"path": None, "bytes": b""}
        name = item["path"] or f"{source}[{i}]"
        images.append(_to_pixels(item["path"] if item["bytes"] is None else item["bytes"], size, name, 3))
        if images[-1].shape != images[0].shape:
            raise InputError(f"{name} differs in size from the images before it: give a size, to which all are brought")
    stacked = torch.stack(images)
    if bool((stacked == stacked[:, :1]).all()):
        stacked = stacked[:, :1].contiguous()
    return stacked, *_read_labels(table[label_column][:], features[label_column], source)


def _read_labels(values: list[Any], feature: Any, source: str) -> tuple[Tensor, tuple[str, ...]]:
    """Class indices (N,) and names, in the order of the data set if it states one, else sorted."""
    names = getattr(feature, "names", None)  # of a ClassLabel, which marks what has no label by -1
    for i, value in enumerate(values):
        if value is None or (names and value < 0):
            raise InputError(f"{source}[{i}] has no label")
    if names:
        return torch.tensor(values), tuple(names)
    index = {value: i for i, value in enumerate(sorted(set(values)))}
    return torch.tensor([index[value] for value in values]), tuple(map(str, index))


def _only(features: Any, kind: type, source: str, what: str) -> str:
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        raise InputError(
            f"{source} has {len(found)} {what} columns ({', '.join(features)}); name one with --{what}-column"
        )
    return str(found[0])
