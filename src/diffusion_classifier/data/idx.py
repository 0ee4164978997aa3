"""Folders of IDX files, the format of MNIST: images and labels in separate files."""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .images import ImageError, to_uint8
from .splits import split_of

_NAME = re.compile(
    r"(.+)[-_.](images|labels)[-_.]idx\d[-_.](?:ubyte|byte|short|int|float|double)(?:\.gz)?", re.IGNORECASE
)
"""Names such as train-images-idx3-ubyte, train-images.idx3-ubyte or emnist-letters-test-images-idx3-ubyte.gz."""
_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


class IdxImages(NamedTuple):
    """Images of IDX files.

    Args:
        images: (M, H, W), uint8.
        labels: (M,), at least 0.
        known: Labels that occur in any split of the data set, ascending.
        notes: See `LabelledSource`.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    known: tuple[int, ...]
    notes: tuple[str, ...]


def is_idx_folder(path: Path) -> bool:
    """Return whether a folder has IDX files with the usual names."""
    return path.is_dir() and bool(_files(path))


def read_idx_folder(folder: Path, split: str | None) -> IdxImages:
    """Read the images and labels of a split.

    Args:
        folder: Folder of the files, whose names begin with the split: t10k or test, train …
        split: "train", "test" …, or the part of a name before "-images". Default: the only split, or "test".

    Raises:
        InputError: Files are missing or broken, do not belong together, or differ from their compressed copies.
    """
    files = _files(folder)
    sets = sorted({name for name, part in files if part == "images"} or {name for name, _ in files})
    if not sets:
        raise InputError(f"{folder} has no file t10k-images-idx3-ubyte, train-images-idx3-ubyte or the like")
    wanted = split or (_parts(sets[0])[1] if len(sets) == 1 else "test")
    found = [name for name in sets if name == wanted or _parts(name)[1] in (wanted, split_of(wanted))]
    if len(found) != 1:
        what = f"no IDX files of the split {wanted!r}" if not found else f"IDX files of several sets for {wanted!r}"
        advice = "; name one with --split" if found else ""
        raise InputError(f"{folder} has {what}: there are {', '.join(found or sets)}{advice}")
    (name,) = found
    data_set, its_split = _parts(name)
    for part in ("images-idx3", "labels-idx1"):
        if (name, part[:6]) not in files:
            raise InputError(f"{folder} has no file {name}-{part}-ubyte or {name}-{part}-ubyte.gz")
    images, labels = (_only(files[name, part]) for part in ("images", "labels"))
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or images.size == 0:
        raise InputError(f"{folder}: images {images.shape} and labels {labels.shape} do not belong together")
    _check_labels(files[name, "labels"][0], labels)
    notes: list[str] = []
    try:
        pixels = to_uint8(images, notes)
    except ImageError as e:
        raise InputError(f"{files[name, 'images'][0]} {e}") from e
    known = set(labels.tolist())
    for other, part in files:
        if part == "labels" and other != name and _parts(other)[0] == data_set:
            beside = _only(files[other, part])
            _check_labels(files[other, part][0], beside)
            known.update(beside.tolist())
    if split is None and its_split != "test":
        notes.insert(0, f"the split {its_split} was read, which is the only one in {folder}")
    return IdxImages(pixels, labels.astype(np.int64), tuple(sorted(known)), tuple(notes))


def _files(folder: Path) -> dict[tuple[str, str], list[Path]]:
    """Return (prefix of the file name, "images" or "labels") → the files: plain, compressed, or both."""
    found: dict[tuple[str, str], list[Path]] = {}
    try:
        paths = sorted(folder.iterdir())
    except OSError as e:
        raise InputError(f"the folder {folder} cannot be read: {e.strerror}") from e
    for path in paths:
        if (match := _NAME.fullmatch(path.name)) and path.is_file():
            found.setdefault((match[1], match[2].lower()), []).append(path)
    return found


def _parts(name: str) -> tuple[str, str]:
    """Split the prefix of a file name, such as emnist-letters-train or t10k, into data set (often "") and split."""
    before, word = re.fullmatch(r"(.*?)([^-_.]*)", name).groups()  # type: ignore[union-attr]
    split = "test" if word.lower() in ("t10k", "test10k") else split_of(word)
    return (before, split) if split else ("", name)


def _only(paths: list[Path]) -> NDArray[Any]:
    first, *others = map(_read_idx, paths)
    for path, other in zip(paths[1:], others, strict=True):
        if not np.array_equal(first, other):
            raise InputError(f"{paths[0]} and {path} differ: remove the one that is not meant")
    return first


def _check_labels(path: Path, labels: NDArray[Any]) -> None:
    if labels.dtype.kind == "f" or (labels.size and labels.min() < 0):
        raise InputError(f"{path} holds values from {labels.min()} to {labels.max()}; labels are whole numbers from 0")


def _read_idx(path: Path) -> NDArray[Any]:
    """Read an IDX file, plain or gzipped: two zero bytes, type, rank, big-endian sizes, values."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
        zeros, kind, rank = struct.unpack_from(">HBB", data)
        if zeros != 0 or kind not in _TYPES:
            raise ValueError("not an IDX file")
        shape = struct.unpack_from(f">{rank}I", data, 4)
        values = np.frombuffer(data, _TYPES[kind], offset=4 + 4 * rank)
        if values.size != int(np.prod(shape, dtype=object)):
            raise ValueError(f"it should hold {' × '.join(map(str, shape))} values, and has {values.size}")
        return values.reshape(shape)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as e:
        raise InputError(f"{path} cannot be read as IDX: {e}") from e
