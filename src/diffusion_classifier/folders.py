"""A folder of images as a table of the library `datasets`, whose own reader leaves out what a link leads to, knows few
formats, and takes a class called "train station" for the training split.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image

from .exceptions import InputError
from .images import find_images

_SPLITS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
"""How folders of splits are called."""
_ALSO_IMAGES = ("", ".heic", ".heif")
_MORE_THAN_IMAGES = ("metadata.csv", "metadata.jsonl", "metadata.parquet", ".zip")
"""Captions, and images in archives, which `datasets` reads."""


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders of splits, if there are no others: split → folder."""
    inner = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    known = {_SPLITS[path.name.lower()]: path for path in inner if path.name.lower() in _SPLITS}
    return known if len(known) == len(inner) else {}


def is_plain(folder: Path) -> bool:
    """Whether it holds images alone, and neither captions nor archives."""
    return not any(name.endswith(_MORE_THAN_IMAGES) for _, _, names in os.walk(folder) for name in names)


def folder_table(source: str, split: str | None) -> Any:
    """A table with the columns image, and label if there are images of two sub-folders or more, all at one depth.

    A file whose suffix is of no image is left out, and so are hidden ones.

    Args:
        source: the folder, or one with a folder for each split.
        split: where there are such: the only one, or "test", if None. Else all images are of the split "train".

    Raises:
        InputError: no such split, or no images in it.
    """
    import datasets

    folder, splits = Path(source), split_folders(Path(source))
    if splits:
        wanted = _SPLITS.get(split or "", split) or (next(iter(splits)) if len(splits) == 1 else "test")
        if wanted not in splits:
            raise InputError(f"{source} has no split {wanted!r}; it has {', '.join(sorted(splits))}")
        folder = splits[wanted]
    elif split not in (None, "train"):
        raise InputError(f"{source} has no split {split!r}: its images are in no folder of that name")
    suffixes = {*Image.registered_extensions(), *_ALSO_IMAGES}
    files = [path.relative_to(source) for path in find_images([folder]) if path.suffix.lower() in suffixes]
    files = sorted((path for path in files if path.suffix or len(path.parts) > 1), key=str)  # a LICENSE is no image
    try:
        "".join(map(str, files)).encode()
    except UnicodeEncodeError as e:
        raise InputError(f"a name in {source!a} is not UTF-8, at {e.object[max(0, e.start - 20) : e.end]!a}") from e
    if not files:
        raise InputError(f"{source} holds no images")
    columns: dict[str, list[str]] = {"image": [str(Path(source).resolve() / path) for path in files]}
    features: dict[str, Any] = {"image": datasets.Image()}
    names = sorted({path.parent.name for path in files})
    if len(names) > 1 and len({len(path.parts) for path in files}) == 1:
        columns["label"] = [path.parent.name for path in files]
        features["label"] = datasets.ClassLabel(names=names)
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))
