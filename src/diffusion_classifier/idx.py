"""Folders of IDX files, as those of MNIST and its kin: images and labels in files of their own."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .exceptions import InputError


def is_idx_folder(path: Path) -> bool:
    """Whether there are IDX files by their usual names."""
    return path.is_dir() and any(path.glob("*-ubyte*"))


def _read_idx(path: Path) -> NDArray[np.uint8]:
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


def read_idx_folder(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (M, H, W) and labels (M,) of the IDX files in a folder.

    Raises:
        InputError: files are missing, broken, or do not belong together.
    """
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
    return images, labels.astype(np.int64)
